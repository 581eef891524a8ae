"""The thread that a driver whose calls block runs them in, for those who write or measure one."""

from __future__ import annotations

from asyncinfer_drivers._shared.worker import Worker

__all__ = ("Worker",)
