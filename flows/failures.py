"""Whose fault an error is: the input's, the machine's, or the code's for this one item.

An input's fault is a result and is kept.  A machine's fault says nothing about the item: it is tried
again, and while it lasts the case has no report rather than one with a hole.  Anything else costs its
own item, is named, and is tried again by the next run.
"""

from __future__ import annotations

from typing import Literal

from flows.cluster import ClusterGone, ResultLost
from pipeline.errors import (
    BadInput,
    BadModelPackage,
    InputChanged,
    SmearflowError,
    UnknownName,
    is_of_machine,
)
from storage.store import CaseBusy

Fault = Literal["input", "machine", "item"]

# Their roots are no OSError, and the libraries are not imported where no remote store is used.
_REMOTE_ROOTS = ("botocore.", "aiobotocore.", "aiohttp.")


class StageFailed(SmearflowError):
    """A stage of a case could not be finished; the message carries the first original error."""


class Interrupted(StageFailed):
    """The machine failed under a case: what was done is kept, and the next run finishes it."""


def fault_of(error: BaseException) -> Fault:
    """Whether the input, the machine or the item itself is to blame for an error."""
    # A worker that lacks a model, or holds a damaged one, says nothing about the field that it was given.
    if isinstance(error, InputChanged | ClusterGone | UnknownName | BadModelPackage):
        return "machine"
    if isinstance(error, BadInput):
        return "input"
    if is_of_machine(error):
        return "machine"
    return "machine" if type(error).__module__.startswith(_REMOTE_ROOTS) else "item"


def killed_its_worker(error: BaseException) -> bool:
    """Whether a call was lost with its workers; a neighbour of it may have killed them."""
    from distributed.scheduler import KilledWorker

    return isinstance(error, KilledWorker | ResultLost)


def worth_another_try(error: BaseException) -> bool:
    """Whether the same case may go through later in the same night."""
    return isinstance(error, Interrupted | CaseBusy) or fault_of(error) == "machine"
