"""Errors that are kept: they tell where they were raised, and hold nothing that was there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType

__all__ = ("strip",)

#: how the note begins that takes the place of a traceback
RAISED = "Raised at (most recent call last):"
#: most frames that are told of
MOST_FRAMES = 50


def strip(error: BaseException) -> None:
    """Replace the tracebacks of ``error``, and of all it is chained to, with a note of their lines.

    A traceback holds the frames, with all their variables: batches, requests, whole streams. The
    frames are not cleared, since one of them may belong to a coroutine that goes on.
    """
    for one in list(_chained(error)):
        if one.__traceback__ is not None:
            text = "\n".join((RAISED, *_lines(one.__traceback__)))
            BaseException.with_traceback(one, None)
            with suppress(Exception):  # a class may forbid it
                _note(one, text)
        if isinstance(one, AttributeError):
            with suppress(Exception):
                one.obj = None


def _chained(error: BaseException) -> Iterator[BaseException]:
    """``error``, its causes, and the members of groups, each once."""
    left, seen = [error], set[int]()
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        left += [other for other in (one.__cause__, one.__context__) if other is not None]
        if isinstance(one, BaseExceptionGroup):
            left += one.exceptions


def _lines(traceback: TracebackType | None) -> Iterator[str]:
    for _ in range(MOST_FRAMES):
        if traceback is None:
            return
        code = traceback.tb_frame.f_code
        yield f'  File "{code.co_filename}", line {traceback.tb_lineno}, in {code.co_name}'
        traceback = traceback.tb_next


def _note(error: BaseException, text: str) -> None:
    """Add ``text``, in the place of an earlier one if the driver raises the same error again."""
    notes = getattr(error, "__notes__", [])
    error.__notes__ = [note for note in notes if not note.startswith(RAISED)]
    error.add_note(text)
