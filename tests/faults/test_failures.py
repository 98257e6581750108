"""Whose fault an error is, and that it is still known when it comes back from a worker."""

from __future__ import annotations

import errno

import pytest

from flows.cluster import ClusterGone
from flows.failures import Interrupted, fault_of, worth_another_try
from pipeline.errors import BadInput, BadModelPackage, InputChanged, UnknownName, UnreadableImage
from storage.store import CaseBusy

ERRORS = [
    BadInput("no"),
    UnreadableImage("torn"),
    InputChanged("another file"),
    UnknownName("detector", "x", ["y"]),
    BadModelPackage("altered"),
    ClusterGone("gone"),
    CaseBusy("busy"),
    OSError(errno.ENOSPC, "No space left on device"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_an_error_keeps_its_type_and_words_on_the_way_from_a_worker(error: Exception) -> None:
    """Dask pickles what a call raises by way of tblib; what it cannot make again becomes a bare Exception."""
    from distributed.core import clean_exception, error_message

    try:
        raise error
    except Exception as caught:
        message = error_message(caught)
    message["exception"] = message["exception"].data
    if message["traceback"] is not None:
        message["traceback"] = message["traceback"].data
    _, back, _ = clean_exception(**message)
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert fault_of(back) == fault_of(error)


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (UnreadableImage("torn"), "input"),
        (BadInput("no"), "input"),
        (InputChanged("another file"), "machine"),
        (UnknownName("detector", "x", ["y"]), "machine"),
        (OSError(errno.ENOSPC, "full"), "machine"),
        (OSError(errno.ESTALE, "stale"), "machine"),
        (ConnectionResetError("cut"), "machine"),
        (ClusterGone("gone"), "machine"),
        (OSError("a decoder's own"), "item"),
        (MemoryError(), "item"),
        (ValueError("a bug"), "item"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_each_error_has_one_who_is_to_blame(error: Exception, fault: str) -> None:
    assert fault_of(error) == fault


def test_only_what_may_go_away_is_tried_again_in_the_same_night() -> None:
    assert worth_another_try(Interrupted("cut off"))
    assert worth_another_try(CaseBusy("busy"))
    assert not worth_another_try(BadInput("no manifest"))
    assert not worth_another_try(ValueError("a bug"))
