"""What a store holds: each case's state, its report's, what was left out and why, and who works on it now."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipeline.errors import BadInput
from pipeline.intake_files import RESERVED
from storage.store import Store, local_folder

State = Literal["done", "running", "failed", "interrupted", "unfinished", "damaged"]

DIED = "the run died before it could say why (killed, power, out of memory, disk full)"


def leaves_out(problem: dict[str, Any]) -> bool:
    """Whether a problem cost the case a field, or an image of one that is used without it."""
    return problem.get("fatal_for_field", True) or problem.get("code") in ("UNREADABLE", "MISSING_FILE")


@dataclass(frozen=True)
class CaseStatus:
    """One case of a store.

    `left_out` are the problems of the case's own result where it has one, else those that its ledger
    knows; `failed_items` those of the last run that crashed and that the next run tries again.
    `report_status` is the result's (docs/safety.md), `reviewer` who last corrected, signed or withdrew it.
    """

    case: str
    state: State
    last_run: str | None = None
    attempts: int = 0
    report: str | None = None
    report_status: str | None = None
    reviewer: str | None = None
    reviewed_at: str | None = None
    n_cells: int | None = None
    flags: list[str] = field(default_factory=list)
    left_out: list[dict[str, Any]] = field(default_factory=list)
    failed_items: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None
    holder: dict[str, Any] | None = None
    progress: dict[str, str] = field(default_factory=dict)
    case_dir: str | None = None

    @property
    def needs_retry(self) -> bool:
        """Whether another run may come to more than the last one."""
        return self.state in ("failed", "interrupted", "unfinished", "damaged") or bool(self.failed_items)


def status_of_store(store_url: str) -> dict[str, Any]:
    """{"store", "cases", "last_night"}: every case of a store, and the last night's summary."""
    store = open_existing(store_url)
    return {
        "store": store.url,
        "cases": [asdict(status_of_case(store, case)) for case in cases_of_store(store)],
        "last_night": last_night(store),
    }


def open_existing(store_url: str) -> Store:
    """The store; BadInput where a folder is not there, which a look must not make."""
    folder = local_folder(store_url)
    if folder is not None and not folder.is_dir():
        raise BadInput(f"{store_url}: there is no such store; name the folder that --store named in a run.")
    return Store(store_url)


def cases_of_store(store: Store) -> list[str]:
    """Case ids, by name: what has a ledger, or a lock alone, since its run found no room for more."""
    return [
        name
        for name in store.list()
        if name not in RESERVED and not name.startswith(".") and is_case(store, name)
    ]


def is_case(store: Store, name: str) -> bool:
    """Whether a run ever began the case."""
    return any(store.exists(f"{name}/{file}") for file in ("ledger.json", ".lock"))


def last_night(store: Store) -> dict[str, Any] | None:
    """The last night's summary without its cases, which `cases` has as they are now."""
    try:
        document = store.read_json("nights/latest.json")
    except (FileNotFoundError, ValueError):
        return None
    return {k: v for k, v in document.items() if k != "cases"} if isinstance(document, dict) else None


def _json(store: Store, key: str) -> dict[str, Any] | None:
    """A document of the store; None where there is none, {} where it is damaged."""
    if not store.exists(key):
        return None
    try:
        found = store.read_json(key)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def status_of_case(store: Store, case: str) -> CaseStatus:
    """The state of one case; nothing of it is written, and no lock is kept."""
    record = _json(store, f"{case}/ledger.json")
    if record is None:
        holder = store.holder(case)
        return CaseStatus(
            case, "unfinished" if holder is None else "running", error=None if holder else DIED, holder=holder
        )
    result = _json(store, f"{case}/result.json")
    if not isinstance(record.get("stages"), dict) or not isinstance(record.get("runs"), list):
        return CaseStatus(case, "damaged", error="the ledger is damaged; run the case again")
    holder, runs, current = store.holder(case), record["runs"], record.get("current")
    # A report that was made again says nothing of how the last run ended.
    last = next((r for r in reversed(runs) if r.get("action") != "report"), runs[-1] if runs else {})
    error = last.get("error") or {}
    state: State
    if holder is not None:
        state = "running"
    elif current is not None or last.get("interrupted"):
        state = "interrupted"
    elif error:
        state = "failed"
    else:
        state = "done" if result else "unfinished"
    problems = (result or {}).get("problems") or record.get("problems") or []
    review = (result or {}).get("review") or {}
    told = f"{error.get('type')}: {error.get('message')}" if error else None
    if state == "interrupted":
        told = DIED
    return CaseStatus(
        case=case,
        state=state,
        last_run=(current or last).get("started"),
        attempts=len(runs) + (current is not None),
        report=store.url_of(f"{case}/report.html") if result else None,
        report_status=(result or {}).get("status"),
        reviewer=review.get("reviewer"),
        reviewed_at=review.get("reviewed_at"),
        n_cells=((result or {}).get("differential") or {}).get("n_detected"),
        flags=[f["code"] for f in (result or {}).get("flags", [])],
        left_out=[
            {
                "code": p.get("code"),
                "field": p.get("field"),
                "file": p.get("file"),
                "reason": p.get("message"),
            }
            for p in problems
            if leaves_out(p)
        ],
        failed_items=[
            {"stage": stage, "item": key, "reason": _reason(entry), "attempts": entry.get("attempts", 0)}
            for stage, items in record["stages"].items()
            for key, entry in items.items()
            if entry.get("status") in ("failed", "interrupted")
        ],
        error=told,
        holder=holder,
        progress=_progress(record["stages"]) if state in ("running", "interrupted") else {},
        case_dir=_case_dir([*runs, current or {}]),
    )


def _case_dir(runs: list[dict[str, Any]]) -> str | None:
    """Where the newest run that read images found them; a report made again, or a review, reads none."""
    return next((run["case_dir"] for run in reversed(runs) if run.get("case_dir")), None)


def _reason(entry: dict[str, Any]) -> str:
    error = entry.get("error") or {}
    return f"{error.get('type')}: {error.get('message')}" if error else "cut off"


def _progress(stages: dict[str, dict[str, dict[str, Any]]]) -> dict[str, str]:
    """`done/all` by stage, of the items that the case still has."""
    told = {}
    for stage, items in stages.items():
        states = [e.get("status") for e in items.values() if e.get("status") != "retired"]
        told[stage] = f"{sum(s in ('done', 'quarantined') for s in states)}/{len(states)}"
    return told


def as_text(status: dict[str, Any]) -> str:
    """The status for a terminal."""
    from pipeline.report_text import clean

    lines = []
    for case in status["cases"]:
        about = [f"{case['n_cells']} cells" if case["n_cells"] is not None else "no result"]
        if case["report_status"]:
            by = f" ({case['reviewer']}, {(case['reviewed_at'] or '')[:10]})" if case["reviewer"] else ""
            about.append(f"report {case['report_status']}{by}")
        if case["flags"]:
            about.append(", ".join(case["flags"]))
        if case["holder"]:
            about.append(f"held by process {case['holder'].get('pid')} on {case['holder'].get('host')}")
        lines.append(
            f"{case['case']:<24} {case['state']:<12} {case['last_run'] or '':<26} {' · '.join(about)}"
        )
        if case["progress"]:
            lines.append("    " + ", ".join(f"{stage} {n}" for stage, n in case["progress"].items()))
        lines += [f"    left out: {p['reason']}" for p in case["left_out"]]
        lines += [
            f"    to do again: {i['stage']} of {i['item']}: {i['reason']}" for i in case["failed_items"]
        ]
        if case["error"]:
            lines.append(f"    {case['error']}")
    counts: dict[str, int] = {}
    for case in status["cases"]:
        counts[case["state"]] = counts.get(case["state"], 0) + 1
    lines.append(", ".join(f"{n} {state}" for state, n in sorted(counts.items())) or "no case in this store")
    night = status["last_night"]
    if night:
        lines.append(f"last night ({night.get('started')}): {night.get('message')}")
    return "\n".join(clean(line) for line in lines)
