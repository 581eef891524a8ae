"""Drivers whose life is a session: made and opened by ``open``, ended by ``close``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from asyncinfer.driver import ServiceTime
from asyncinfer.errors import DeviceLost
from asyncinfer_drivers._shared.sharing import SharingDriver
from asyncinfer_drivers._shared.timing import measured

__all__ = ("Host", "HostDriver", "HostSession", "Session", "SessionDriver")


class Session(Protocol):
    """From a driver's ``open`` to its ``close``; used on the event loop, and never opened again."""

    @property
    def opened(self) -> bool:
        """Whether opening has ended well."""
        ...


class Host(Protocol):
    """A model, and what runs it."""

    #: one raw input, or ``None``
    warmup: Any

    @property
    def max_batch(self) -> int:
        """Tasks a call takes, as far as is known now."""
        ...

    @property
    def details(self) -> Mapping[str, str | float]:
        """What was chosen so far."""
        ...

    async def open(self) -> None:
        """Load it; ``ConfigError`` if it cannot be loaded or run."""
        ...

    async def run(self, batch: Sequence[Any]) -> list[Any]:
        """One output per input, or the exception that is its own fault."""
        ...

    async def probe(self) -> None:
        """``DeviceLost`` if it cannot compute."""
        ...


class HostSession(Host, Session, Protocol):
    """A host that a driver opens and closes."""

    async def close(self, timeout: float) -> None:
        """End it; ``DeviceTimeout`` if something is left after ``timeout`` seconds."""
        ...


S = TypeVar("S", bound=Session)
H = TypeVar("H", bound=HostSession)


class SessionDriver(SharingDriver, Generic[S]):
    """A driver that makes a new session each time it is opened."""

    _session: S | None = None

    @abstractmethod
    def _new_session(self) -> S:
        """A session that is not open yet."""

    @abstractmethod
    async def _open(self, session: S) -> None:
        """Open it."""

    @abstractmethod
    async def _close(self, session: S) -> None:
        """End it, whether it is open, opening or neither."""

    async def open(self) -> None:
        """Make the device ready, unless it is.

        Raises ``ConfigError`` for what cannot work, ``DeviceError`` for the device's own faults,
        ``DeviceLost`` if ``close`` was called meanwhile.
        """
        if self._session is not None and self._session.opened:
            return
        await self._end_session()
        session = self._session = self._new_session()
        try:
            await self._open(session)
        except BaseException:
            if self._session is session:
                await self._end_session()
            raise
        if self._session is not session:
            raise DeviceLost(self.name, "closed while it was opening")

    async def close(self) -> None:
        """End the session, with all that it holds. Idempotent."""
        await self._end_session()

    async def _end_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await self._close(session)

    def _opened(self) -> S:
        if self._session is None or not self._session.opened:
            raise DeviceLost(self.name, "not open")
        return self._session


class HostDriver(SessionDriver[H]):
    """A driver whose session runs the model: its calls are the host's."""

    #: seconds that closing a session may take
    _close_timeout: float
    _max_batch = 1
    _details: Mapping[str, str | float]

    @property
    def max_batch(self) -> int:
        """Tasks a call takes: what the session has found by now, be it between calls or at rest."""
        session = self._session
        return self._max_batch if session is None or not session.opened else session.max_batch

    @max_batch.setter
    def max_batch(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, tasks: int
    ) -> None:
        self._max_batch = tasks

    @property
    def details(self) -> Mapping[str, str | float]:
        """What was chosen since it last opened."""
        session = self._session
        return self._details if session is None or not session.opened else session.details

    @details.setter
    def details(self, details: Mapping[str, str | float]) -> None:
        self._details = details

    async def _open(self, session: H) -> None:
        await session.open()

    async def _close(self, session: H) -> None:
        if session.opened:
            self._max_batch, self._details = session.max_batch, session.details
        await session.close(self._close_timeout)

    async def infer(self, batch: Sequence[Any]) -> list[Any]:
        """Run the tasks; one output, or the exception that is that task's fault, for each."""
        return await self._opened().run(batch)

    async def calibrate(self) -> ServiceTime | None:
        """Time calls with ``warmup_input``, all that lies between caller and model included.

        Takes about a second at most, or two calls where those are longer. ``None`` without a
        ``warmup_input``.
        """
        warmup = self._opened().warmup
        return None if warmup is None else await measured(self.infer, warmup, self.max_batch)

    async def probe(self) -> None:
        """Compute something small as soon as possible; ``DeviceLost`` if that fails."""
        await self._opened().probe()
