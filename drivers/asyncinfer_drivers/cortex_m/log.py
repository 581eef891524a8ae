"""What the board says of its own accord, for ``logging``."""

from __future__ import annotations

import logging

from asyncinfer_drivers.cortex_m.frames import Error, Frame, Log

__all__ = ("logger", "show")

logger = logging.getLogger("asyncinfer.cortex_m")


def show(name: str, frame: Frame) -> None:
    """Log a LOG at its level, and an ERROR that answers nothing as a warning; nothing else."""
    if isinstance(frame, Log):
        logger.log(frame.level, "%s: %s", name, frame.text)
    elif isinstance(frame, Error):
        logger.warning("%s: %s", name, frame)
