"""Resume by fingerprint: what was computed is kept with the fingerprint of what it was computed from.

Every item of a stage (a field, a write unit, the whole case) has one record beside the store,
`<case>/work/<stage>/<key>.json`.  A record with the same fingerprint is taken as it is; anything
else is computed again.  Bad input is a result too, and is kept; a crash is not, so that the next run
tries again (`flows.failures`).
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.cluster import ClusterGone, Workers
from flows.failures import Interrupted, StageFailed, fault_of, killed_its_worker
from pipeline.errors import SmearflowError
from pipeline.settings import Settings
from storage.audit import Action
from storage.fingerprint import fingerprint
from storage.ledger import Ledger
from storage.store import Store

__all__ = ["CaseRun", "Interrupted", "Item", "Outcome", "StageFailed", "WorkNeeded", "safe_key"]

log = logging.getLogger("smearflow")


class WorkNeeded(SmearflowError):
    """Raised where something would have to be computed and only a look was asked for."""


@dataclass(frozen=True)
class Item:
    """One piece of work of a stage, for a worker."""

    key: str
    fingerprint: str
    function: Callable[..., dict[str, Any]]
    args: tuple[Any, ...]
    gpu: bool = False
    slide: str | None = None  # of a field's item, for the log
    field: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of an item: its output, or the error that was kept."""

    output: dict[str, Any] | None
    error: str | None = None
    error_type: str | None = None
    bad_input: bool = False


@dataclass
class CaseRun:
    """Everything a stage needs to run for one case."""

    case_dir: Path
    case_id: str
    store: Store
    settings: Settings
    workers: Workers
    ledger: Ledger
    pixel_size_um: float | None = None
    allow_work: bool = True
    action: Action = "run"  # what the audit log calls it
    by_night: bool = False  # nobody said what is asked of this case alone
    announced: bool = False  # whether the log has its line already
    computed: dict[str, int] = field(default_factory=dict)
    reused: dict[str, int] = field(default_factory=dict)
    stage_seconds: dict[str, float] = field(default_factory=dict)

    def record_key(self, stage: str, key: str) -> str:
        return f"{self.case_id}/work/{stage}/{key}.json"

    def picture_key(self, stage: str, key: str) -> str:
        return f"{self.case_id}/work/{stage}/{key}.jpg"

    def end(self, error: BaseException | None = None) -> None:
        """Close this run in the ledger."""
        self.ledger.end_run(
            computed=self.computed,
            reused=self.reused,
            seconds=self.stage_seconds,
            error=error,
            action=self.action,
        )

    def kept(self, stage: str, key: str, expected: str) -> Outcome | None:
        """The outcome kept under this fingerprint, or None.

        A torn or altered record counts as absent: it is only ever a copy of work that can be redone.
        """
        name = self.record_key(stage, key)
        if not self.store.exists(name):
            return None
        try:
            record = self.store.read_json(name)
            if record["fingerprint"] != expected:
                return None
            error = record.get("error")
            if error is not None:
                return Outcome(None, error["message"], error["type"], True)
            output = record["output"]
        except (ValueError, KeyError, TypeError):
            log.warning("%s: the record %s is damaged; it is computed again", self.case_id, name)
            return None
        # A picture beside the record may have been lost or torn since.
        for file, n_bytes in _files(record).items():
            found = self.store.size(file)
            if found is None or n_bytes not in (None, found):
                return None
        return Outcome(output)

    def keep(self, stage: str, key: str, expected: str, outcome: Outcome) -> None:
        record: dict[str, Any] = {"fingerprint": expected}
        if outcome.error is None:
            record["output"] = outcome.output
            record["files"] = {file: self.store.size(file) for file in pictures_in(outcome.output)}
        else:
            record["error"] = {"type": outcome.error_type, "message": outcome.error}
        before = self._files_of(stage, key)
        self.store.write_json(self.record_key(stage, key), record)
        for file in before - _files(record).keys():
            self.store.delete(file)

    def _files_of(self, stage: str, key: str) -> set[str]:
        """The pictures that a record speaks of, damaged or not."""
        try:
            return set(_files(self.store.read_json(self.record_key(stage, key))))
        except (FileNotFoundError, ValueError, AttributeError):
            return set()

    def _count(self, stage: str, *, computed: bool) -> None:
        counter = self.computed if computed else self.reused
        counter[stage] = counter.get(stage, 0) + 1

    def run_items(
        self, stage: str, items: list[Item], *, intact: Callable[[str], bool] | None = None
    ) -> dict[str, Outcome]:
        """The outcome of every item, computed on the workers where it is not kept.

        `intact(key)` may reject a kept record whose files (shards) are not there any more.
        """
        started = time.perf_counter()
        outcomes: dict[str, Outcome] = {}
        todo: list[Item] = []
        for item in items:
            kept = self.kept(stage, item.key, item.fingerprint)
            if kept is not None and kept.error is None and intact is not None and not intact(item.key):
                kept = None
            if kept is None:
                todo.append(item)
            else:
                outcomes[item.key] = kept
                self._count(stage, computed=False)
                self.ledger.reused(stage, item.key, item.fingerprint, bad_input=kept.error is not None)
        if todo and not self.allow_work:
            raise WorkNeeded(f"{self.case_id}: {stage} has {len(todo)} items to compute")
        self.retire(stage, {item.key for item in items})
        if todo:
            outcomes |= self._compute(stage, todo)
            self.ledger.save()
        self.stage_seconds[stage] = self.stage_seconds.get(stage, 0.0) + time.perf_counter() - started
        return {item.key: outcomes[item.key] for item in items}

    def retire(self, stage: str, keys: set[str]) -> None:
        """Forget the items of a stage that the case no longer has: a field that was taken out, say."""
        if not self.allow_work:
            return
        self.ledger.retire(stage, keys)
        for name in self.store.list(f"{self.case_id}/work/{stage}"):
            key = name.removesuffix(".json")
            if name.endswith(".json") and key not in keys:
                for file in (*self._files_of(stage, key), self.record_key(stage, key)):
                    self.store.delete(file)

    def _compute(self, stage: str, todo: list[Item]) -> dict[str, Outcome]:
        """Have the items computed; those that the machine failed, or that lost their worker, get one more
        try.  There they run one at a time, so that only who kills a worker is blamed for it.

        Raises Interrupted where the machine fails an item again, or the cluster is lost: a report with a
        hole in it would outlive the fault.
        """
        outcomes: dict[str, Outcome] = {}
        alone = False
        for attempt in (1, 2):
            again: dict[str, BaseException] = {}
            for item in todo:
                self.ledger.start(stage, item.key, item.fingerprint)
            # Before the work, so that a run that is killed leaves what it was about to do.
            self.ledger.save()
            by_key = {item.key: item for item in todo}
            try:
                for key, output, error in self._dispatch(stage, todo, alone=alone):
                    suspect = error is not None and attempt == 1 and killed_its_worker(error)
                    alone = alone or suspect
                    if error is not None and (suspect or fault_of(error) == "machine"):
                        self.ledger.fail(stage, key, error)
                        self._tell(stage, by_key[key], error)
                        again[key] = error
                    else:
                        outcomes[key] = self._settle(stage, by_key[key], output, error)
                    self.ledger.save_now_and_then()
            except ClusterGone as error:
                for key in by_key.keys() - outcomes.keys() - again.keys():
                    self.ledger.fail(stage, key, error)
                self.ledger.save()
                raise Interrupted(f"{self.case_id}: {stage} was cut off: {error}") from error
            if not again:
                return outcomes
            todo = [by_key[key] for key in again]
        self.ledger.save()
        key, first = next(iter(again.items()))
        more = f" and {len(again) - 1} more" if len(again) > 1 else ""
        raise Interrupted(
            f"{self.case_id}: the machine failed {stage} of {key}{more} twice: "
            f"{type(first).__name__}: {first}"
        ) from first

    def _settle(
        self, stage: str, item: Item, output: dict[str, Any] | None, error: BaseException | None
    ) -> Outcome:
        """Keep what an item came to."""
        self._count(stage, computed=True)
        if error is None:
            outcome = Outcome(output)
            self.keep(stage, item.key, item.fingerprint, outcome)
            self.ledger.done(stage, item.key)
            self._tell(stage, item, None)
            return outcome
        bad_input = fault_of(error) == "input"
        outcome = Outcome(None, str(error), type(error).__name__, bad_input)
        if bad_input:
            self.keep(stage, item.key, item.fingerprint, outcome)
            self.ledger.quarantine(stage, item.key, error)
        else:
            self.ledger.fail(stage, item.key, error)
        self._tell(stage, item, error)
        return outcome

    def _tell(self, stage: str, item: Item, error: BaseException | None) -> None:
        """A line of the log for what became of an item, with what it is about."""
        entry = self.ledger.entry(stage, item.key) or {}
        about = {
            "case": self.case_id,
            "stage": stage,
            "item": item.key,
            "slide": item.slide,
            "field": item.field,
            "status": entry.get("status"),
            "seconds": entry.get("seconds"),
        }
        if error is None:
            log.info("%s: %s of %s done", self.case_id, stage, item.key, extra=about)
        else:
            kind = type(error).__name__
            log.warning(
                "%s: %s of %s failed: %s: %s", self.case_id, stage, item.key, kind, error, extra=about
            )

    def _dispatch(
        self, stage: str, todo: list[Item], *, alone: bool
    ) -> Iterator[tuple[str, dict[str, Any] | None, BaseException | None]]:
        from flows.console import progress

        if not todo:
            return
        how = {"alone": True} if alone else {}

        def results() -> Iterator[tuple[str, Any, BaseException | None]]:
            for gpu in (False, True):
                calls = {item.key: item.args for item in todo if item.gpu is gpu}
                if calls:
                    yield from self.workers.map(todo[0].function, calls, gpu=gpu, **how)

        yield from progress(results(), total=len(todo), what=f"{self.case_id} {stage}")

    def run_here(
        self,
        stage: str,
        expected: str,
        compute: Callable[[], dict[str, Any]],
        *,
        intact: Callable[[], bool] | None = None,
    ) -> dict[str, Any]:
        """One result for the whole case, computed in this process where it is not kept."""
        started = time.perf_counter()
        kept = self.kept(stage, "case", expected)
        if kept is not None and kept.output is not None and (intact is None or intact()):
            self._count(stage, computed=False)
            self.ledger.reused(stage, "case", expected)
            return kept.output
        if not self.allow_work:
            raise WorkNeeded(f"{self.case_id}: {stage} has to be computed")
        self.ledger.start(stage, "case", expected)
        self.ledger.save()
        try:
            output = compute()
        except Exception as error:
            self.ledger.fail(stage, "case", error)
            self.ledger.save()
            if fault_of(error) == "machine" and not isinstance(error, Interrupted):
                raise Interrupted(f"{self.case_id}: {stage} was cut off: {error}") from error
            raise
        self.keep(stage, "case", expected, Outcome(output))
        self.ledger.done(stage, "case")
        self.ledger.save()
        self._count(stage, computed=True)
        seconds = time.perf_counter() - started
        self.stage_seconds[stage] = self.stage_seconds.get(stage, 0.0) + seconds
        about = {"case": self.case_id, "stage": stage, "status": "done", "seconds": round(seconds, 3)}
        log.info("%s: %s done", self.case_id, stage, extra=about)
        return output


def safe_key(*names: str) -> str:
    """A file name for an item: readable, safe on any store, and different for different names."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", "__".join(names))[:60].strip(".") or "item"
    return f"{readable}-{fingerprint(list(names))[:8]}"


def pictures_in(output: Any) -> Iterator[str]:
    """The store's keys of the pictures that an output names, at any depth."""
    if isinstance(output, dict):
        for name, value in output.items():
            if name == "picture" and isinstance(value, str):
                yield value
            else:
                yield from pictures_in(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from pictures_in(value)


def _files(record: dict[str, Any]) -> dict[str, Any]:
    """Size by key of the pictures of a record."""
    files = record.get("files")
    return files if isinstance(files, dict) else dict.fromkeys(pictures_in(record.get("output")))
