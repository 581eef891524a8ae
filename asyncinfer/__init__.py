"""One ordered stream of deep-learning inference over every device at hand, inside asyncio."""

from asyncinfer.dispatcher import Dispatcher as Dispatcher
from asyncinfer.driver import Driver as Driver
from asyncinfer.hedging import Hedge as Hedge
from asyncinfer.result import Result as Result
from asyncinfer.timeouts import Timeouts as Timeouts

__all__ = ("Dispatcher", "Driver", "Hedge", "Result", "Timeouts")
