"""A run that is told to end (SIGTERM) ends between two items, and says so.

Prefect's own handler raises wherever the process happens to be: in a callback of the garbage collector the
error is lost and the night goes on, and the server that the run started is left alone.  So a run from the
command line sets a flag, which is looked at between items, cases and stages.  Under a Prefect worker, which
stops its flows by the same signal, Prefect's handler stays.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_STATUS = 128 + signal.SIGTERM

_ours = False
_asked: int | None = None


class Stopped(BaseException):
    """The run was told to end; no `except Exception` takes it for a fault of what it was at."""


def sentence(number: int = signal.SIGTERM) -> str:
    name = signal.Signals(number).name
    return f"stopped by a signal ({name}); what was done is kept, and the next run goes on."


def _note(number: int, _frame: FrameType | None) -> None:
    global _asked
    _asked = number


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, SIGTERM is noted and `check` raises Stopped; for the main thread of a process of our own."""
    global _ours, _asked
    if threading.current_thread() is not threading.main_thread():  # Python hands signals to that alone
        yield
        return
    before = signal.signal(signal.SIGTERM, _note)
    _ours, _asked = True, None
    try:
        yield
    except BaseException as error:  # Prefect's handler stands between the beginning of a flow and `take_back`
        told = as_stopped(error)
        if told is error:
            raise
        raise told from error
    finally:
        _ours, _asked = False, None
        signal.signal(signal.SIGTERM, before)


def take_back() -> None:
    """Inside `stoppable`, put our handler in the place of the one that Prefect set when its flow began."""
    if _ours:
        signal.signal(signal.SIGTERM, _note)


def check() -> None:
    """Raise Stopped where the run was told to end."""
    if _asked is not None:
        raise Stopped(sentence(_asked))


def as_stopped(error: BaseException) -> BaseException:
    """The error, or, of Prefect's own, which has no words, one that says what happened."""
    from prefect.exceptions import TerminationSignal

    return Stopped(sentence(error.signal)) if isinstance(error, TerminationSignal) else error
