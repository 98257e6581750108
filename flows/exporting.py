"""A case's report in a form for other systems, made of the files that its audit log tells of last."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, Literal

from flows.auditing import RESULT, check_record, existing_database
from flows.identity import pseudonym
from flows.reviewing import is_named
from flows.status import open_existing
from pipeline.errors import BadInput
from storage.json_text import json_text
from storage.store import Store

if TYPE_CHECKING:
    from pipeline.result import Result

Form = Literal["fhir", "csv"]
CELLS = "cells.parquet"


def export_case(
    case_id: str, store: str, form: Form, *, cells: bool = False, report: str | None = None
) -> tuple[str, Result]:
    """The text of the export, and the result that it was made of; nothing of the store is changed.

    `cells`: the table of cells in place of that of classes, as CSV.  `report` is the id of the report that is
    wanted.  Raises BadInput where the case has none, where that is not the current one, and where it carries
    another pseudonym than SMEARFLOW_PSEUDONYM_KEY gives the case; RecordUnsound where the audit log does not
    hold, or where a file is not the last that it tells of.
    """
    from pipeline.intake import check_case_id
    from pipeline.result_schema import read_result

    if cells and form != "csv":
        raise BadInput("a list of cells is a table; give --format csv with --cells.")
    opened = open_existing(store)
    case_id = check_case_id(case_id)
    names = (RESULT, CELLS) if cells else (RESULT,)
    files = _files(opened, case_id, names)
    result = read_result(files[RESULT], opened.url_of(f"{case_id}/{RESULT}"))
    if report is not None and not is_named(report, result.report_uuid):
        raise BadInput(
            f"{case_id}: its report is now {result.report_uuid} ({result.status}), not the one that was "
            "asked for; read it, and give its id as --report."
        )
    if pseudonym(case_id) not in (case_id, result.case.pseudo_id):
        raise BadInput(
            f"{case_id}: its report carries another pseudonym than SMEARFLOW_PSEUDONYM_KEY gives it; set the "
            "key that the run had, or run the case again."
        )
    if form == "fhir":
        return _fhir(result), result
    return (_cells(files[CELLS]) if cells else _classes(result)), result


def _files(store: Store, case_id: str, names: tuple[str, ...]) -> dict[str, bytes]:
    """The bytes of a case's files, each the last of its name that the audit log tells of."""
    try:
        files = {name: store.read_bytes(f"{case_id}/{name}") for name in names}
    except FileNotFoundError as error:
        raise BadInput(
            f"{case_id}: the store {store.url} holds no report of this case; check its id, or run it first."
        ) from error
    # The files first: a hash is in the log before its file is there, so a look needs no lock.
    with existing_database(store) as database:
        told = check_record(store, case_id, built_on=names, database=database)
    for name, data in files.items():
        if told.last.get(name, "") not in ("", hashlib.sha256(data).hexdigest()):
            raise BadInput(
                f"{case_id}: {store.url_of(f'{case_id}/{name}')} is not the file that was written last; wait "
                "for a run or review that is at work to end, or run the case again."
            )
    return files


def _fhir(result: Result) -> str:
    from pipeline.fhir import check_bundle, fhir_bundle

    bundle = fhir_bundle(result)
    check_bundle(bundle)
    return json_text(bundle) + "\n"


def _classes(result: Result) -> str:
    from pipeline.sheet import result_sheet

    return result_sheet(result)


def _cells(data: bytes) -> str:
    import pandas as pd

    from pipeline.report_cells import csv_text

    return csv_text(pd.read_parquet(io.BytesIO(data), dtype_backend="numpy_nullable"))
