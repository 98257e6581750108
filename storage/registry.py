"""One registry for everything that can be swapped: detectors, segmenters, stainers, classifiers.

A builder is registered under a task and an architecture.  `load(task, name)` finds the model
package of that name, or a weight-free architecture of that name, checks that it fits the task and
hands the package to its builder.  A caller never asks which model it got.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pipeline.errors import BadModelPackage, UnknownName
from storage.fingerprint import fingerprint
from storage.packages import ModelPackage, find_package, is_path, list_packages

Task = Literal["detector", "segmenter", "stainer", "classifier", "sideroblast-reader", "patient-classifier"]
Builder = Callable[[ModelPackage | None], Any]

# The rooms that register builders when they are imported; imported only when a model is asked for,
# so that storage depends on no room above it and `--help` stays fast.
ROOMS = ("detectors", "stainers", "classifiers")


@dataclass(frozen=True)
class Entry:
    """A registered architecture: what it does, under which licence, and whether it has weights."""

    task: Task
    architecture: str
    builder: Builder
    licence: str
    needs_package: bool
    summary: str


_ENTRIES: dict[tuple[str, str], Entry] = {}
_NOT_PLAIN = re.compile(r"[^\w.-]")  # in the name of a model, where it is part of a store's key


def register(
    task: Task, architecture: str, *, licence: str, summary: str, needs_package: bool = True
) -> Callable[[Builder], Builder]:
    """Register a builder `(package or None) -> model` for a task and architecture."""

    def keep(builder: Builder) -> Builder:
        key = (task, architecture)
        if key in _ENTRIES and _ENTRIES[key].builder is not builder:
            raise ValueError(f"{task} '{architecture}' is registered twice")
        _ENTRIES[key] = Entry(task, architecture, builder, licence, needs_package, summary)
        return builder

    return keep


def _import_rooms() -> None:
    for room in ROOMS:
        importlib.import_module(room)


def entries(task: Task | None = None) -> Iterator[Entry]:
    """Every registered architecture, of one task or of all."""
    _import_rooms()
    for entry in sorted(_ENTRIES.values(), key=lambda e: (e.task, e.architecture)):
        if task in (None, entry.task):
            yield entry


def available(task: Task) -> list[str]:
    """Names that `load` takes for a task: packages first, then weight-free architectures."""
    packages = [p.name for p in list_packages() if p.card.task == task]
    return packages + [e.architecture for e in entries(task) if not e.needs_package]


def describe(task: Task, name: str) -> ModelPackage | Entry:
    """The package or weight-free entry behind a name, without building the model.

    Raises UnknownName with the names that exist.
    """
    package = find_package(name)
    fits = package is not None and package.card.task == task
    if package is not None and fits and (package.name == name or is_path(name)):
        return package
    _import_rooms()
    entry = _ENTRIES.get((task, name))
    if entry is not None and not entry.needs_package:
        return entry
    if package is not None and fits:  # a folder whose name is no model's
        return package
    raise UnknownName(task, name, available(task))


def modalities(task: Task, name: str) -> tuple[str, ...]:
    """The modalities that a model reads, by its card; none for a weight-free one.  Raises UnknownName."""
    found = describe(task, name)
    return () if isinstance(found, Entry) else found.card.modalities


def virtual_array(name: str, kind: str) -> str:
    """Where a case's store keeps what a stainer painted: `virtual/<model>/<kind>`.

    The model is called as its package is; one that is given by its folder has the start of its weights' hash
    beside its name, for two such packages may have one.
    """
    package, called = find_package(name), name
    if package is not None and package.name != name:
        called = f"{package.name}-{package.card.sha256[:8]}"
    return f"virtual/{_NOT_PLAIN.sub('-', called)}/{kind}"


def load(task: Task, name: str) -> Any:
    """Build the model of a name; a worker process builds each model once and keeps it.

    Raises UnknownName, or BadModelPackage where the card, the hash or the weights do not fit.
    """
    found = describe(task, name)
    if isinstance(found, Entry):
        return _build(task, name, None)
    return _build(task, name, fingerprint(found.card))


@cache
def _build(task: Task, name: str, card: str | None) -> Any:
    del card  # another card is another model, even of the same weights: its parameters are the card's
    found = describe(task, name)
    if isinstance(found, Entry):
        return found.builder(None)
    _import_rooms()
    entry = _ENTRIES.get((task, found.card.architecture))
    if entry is None:
        known = [e.architecture for e in entries(task)]
        raise BadModelPackage(
            f"{found.folder}: architecture '{found.card.architecture}' of task '{task}' is not "
            f"registered; known are: {', '.join(known)}."
        )
    found.verify()
    return entry.builder(found)
