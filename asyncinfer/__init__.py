"""One ordered stream of deep-learning inference over every device at hand, inside asyncio."""

from asyncinfer.driver import Driver as Driver
from asyncinfer.result import Result as Result

__all__ = ("Driver", "Result")
