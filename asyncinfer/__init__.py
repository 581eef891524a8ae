"""One ordered stream of deep-learning inference over every device at hand, inside asyncio."""

from asyncinfer.dispatcher import Dispatcher as Dispatcher
from asyncinfer.driver import Driver as Driver
from asyncinfer.options import Hedge as Hedge
from asyncinfer.options import Timeouts as Timeouts
from asyncinfer.result import Result as Result

__all__ = ("Dispatcher", "Driver", "Hedge", "Result", "Timeouts")
