"""For your own tests: virtual time, a simulated device, and the driver conformance suite."""

from asyncinfer.testing.clock import DeadlockError as DeadlockError
from asyncinfer.testing.clock import VirtualLoop as VirtualLoop
from asyncinfer.testing.clock import run_virtual as run_virtual
from asyncinfer.testing.conformance import ConformanceError as ConformanceError
from asyncinfer.testing.conformance import Report as Report
from asyncinfer.testing.conformance import check_driver as check_driver
from asyncinfer.testing.host import SimulatedHost as SimulatedHost
from asyncinfer.testing.simulated import SimulatedDriver as SimulatedDriver

__all__ = (
    "ConformanceError",
    "DeadlockError",
    "Report",
    "SimulatedDriver",
    "SimulatedHost",
    "VirtualLoop",
    "check_driver",
    "run_virtual",
)
