"""For tests of your own: virtual time, a simulated device, and the driver conformance suite."""

from asyncinfer.testing.clock import DeadlockError as DeadlockError
from asyncinfer.testing.clock import VirtualLoop as VirtualLoop
from asyncinfer.testing.clock import run_virtual as run_virtual
from asyncinfer.testing.simulated import SimulatedDriver as SimulatedDriver

__all__ = ("DeadlockError", "SimulatedDriver", "VirtualLoop", "run_virtual")
