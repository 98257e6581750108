"""What a person wants to know in the morning: as JSON, as a page that links every report, as artifacts."""

from __future__ import annotations

import flows.prefect_env  # noqa: F401  (sets Prefect's environment before it is imported)

# isort: split
import logging
import os
import socket
import time
from typing import Any

from storage.clock import now, stamp
from storage.store import Store

log = logging.getLogger("smearflow.nightly")

FOLDER = "nights"
LATEST = f"{FOLDER}/latest.json"
SCHEMA_VERSION = 1


class NightSummary:
    """The account of one night, begun when it begins."""

    def __init__(self, inbox: str, store_url: str, slowest: int) -> None:
        # Two nights may begin in one second, and a clock may be set back.
        self.name = f"{now().strftime('%Y-%m-%dT%H-%M-%SZ')}-{os.getpid()}"
        self.canary: dict[str, Any] = {"status": "off"}
        self._inbox, self._store_url, self._slowest = inbox, store_url, slowest
        self._started, self._clock = stamp(), time.monotonic()

    def begun(self) -> dict[str, Any]:
        """What stands for the night until it ends; a night that was killed leaves it so."""
        return {
            "schema_version": SCHEMA_VERSION,
            "night": self.name,
            "status": "running",
            "message": f"begun by process {os.getpid()} on {socket.gethostname()} and not ended: it is under "
            "way, or it died",
            "started": self._started,
            "inbox": self._inbox,
            "store": self._store_url,
        }

    def end(self, rows: list[dict[str, Any]], stopped: str | None = None) -> dict[str, Any]:
        """The night as one JSON-able document; `rows` has one row a case (`flows.execute.summary`).

        `stopped` says by what the night was ended before its last case, where it was.
        """
        count = {
            "cases": len(rows),
            "processed": sum(r["status"] == "done" for r in rows),
            "computed_anew": sum(r["status"] == "done" and r["computed"] > 0 for r in rows),
            "failed": sum(r["status"] == "failed" for r in rows),
            "busy": sum(r["status"] == "busy" for r in rows),
            "left_out": sum(r.get("quarantined", 0) for r in rows),
        }
        stages: dict[str, float] = {}
        for row in rows:
            for stage, seconds in row.get("seconds", {}).items():
                stages[stage] = round(stages.get(stage, 0.0) + seconds, 2)
        flags: dict[str, int] = {}
        for row in rows:
            for code in row.get("flags", []):
                flags[code] = flags.get(code, 0) + 1
        timed = sorted(
            (r for r in rows if r.get("computed")), key=lambda r: (-r.get("seconds_total", 0.0), r["case"])
        )
        alarm = self.canary["status"] == "alarm"
        done = f"{stopped} {_sentence(count)}" if stopped else _sentence(count)
        return {
            "schema_version": SCHEMA_VERSION,
            "night": self.name,
            "status": "alarm" if alarm else "stopped" if stopped else "completed",
            "message": self.canary["message"] if alarm else done,
            "started": self._started,
            "ended": stamp(),
            "seconds": round(time.monotonic() - self._clock, 2),
            "inbox": self._inbox,
            "store": self._store_url,
            "canary": self.canary,
            "counts": count,
            "flags": dict(sorted(flags.items())),
            "stage_seconds": stages,
            "slowest": [{"case": r["case"], "seconds": r["seconds_total"]} for r in timed[: self._slowest]],
            "cases": rows,
        }


def _sentence(count: dict[str, int]) -> str:
    text = (
        f"{count['processed']} of {count['cases']} cases processed, {count['failed']} cases and "
        f"{count['left_out']} fields quarantined"
    )
    return f"{text}, {count['busy']} held by another run" if count["busy"] else text


def record(store: Store, document: dict[str, Any]) -> None:
    """Write the night as JSON, as the latest one first: that is what `status` shows and a machine watches."""
    for key in (LATEST, f"{FOLDER}/{document['night']}.json"):
        try:
            store.write_json(key, document)
        except Exception as error:
            log.error("the night's summary could not be written as %s: %s", key, error)


def publish(store: Store, document: dict[str, Any]) -> None:
    """Write the night into the store and, inside a flow, as Prefect artifacts.

    A summary that cannot be written costs no case: the ledgers have everything that it says.
    """
    from pipeline.night_page import render_night

    record(store, document)
    try:
        store.write_text(f"{FOLDER}/{document['night']}.html", render_night(document))
    except Exception as error:
        log.error("the night's page could not be written: %s", error)
    try:
        _artifacts(store, document)
    except Exception as error:  # the server went away
        log.error("the night's artifacts could not be made: %s", error)


def _artifacts(store: Store, document: dict[str, Any]) -> None:
    from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
    from prefect.runtime import flow_run

    if not flow_run.id:
        return
    create_markdown_artifact(markdown=markdown(document), key="night-summary")
    create_link_artifact(
        link=store.url_of(f"{FOLDER}/{document['night']}.html"),
        link_text="The night's page",
        key="night-page",
    )
    if document["cases"]:
        create_table_artifact(
            key="night",
            table=[
                {
                    "case": r["case"],
                    "status": r["status"],
                    "report": r.get("report", ""),
                    "quarantined": "; ".join(p["message"] for p in r.get("problems", [])),
                    "flags": ", ".join(r.get("flags", [])),
                    "reason": r.get("error", ""),
                }
                for r in document["cases"]
            ],
            description="The night's cases, their reports, and why a case has none.",
        )


def markdown(document: dict[str, Any]) -> str:
    """The figures of a night for Prefect's page; no text of foreign origin stands in it."""
    stages = document["stage_seconds"]
    lines = [
        f"**{document['counts']['processed']} of {document['counts']['cases']} cases processed**, "
        f"{document['counts']['failed']} failed, {document['counts']['left_out']} fields left out, "
        f"{document['seconds']:.0f} s; canary: {document['canary']['status']}",
        "",
        "| stage | seconds |",
        "|---|---|",
        *(f"| {stage} | {seconds:.1f} |" for stage, seconds in stages.items()),
    ]
    return "\n".join(lines)
