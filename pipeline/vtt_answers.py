"""Answers of experts to a Visual Turing Test, as the page's JSON or CSV holds them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import BadInput, shown
from storage.tables import decoded, parse_table, read_bytes

ANSWERS_FORMAT = "smearflow-vtt-answers/1"
COLUMNS = ("test_id", "expert", "id", "origin", "label")
WORDS = {
    "origin": {"real": True, "fake": False},
    "label": {"positive": True, "negative": False},
}


@dataclass(frozen=True)
class Answer:
    """What an expert said of an image; None where it was left open."""

    real: bool | None
    positive: bool | None


@dataclass(frozen=True)
class Answers:
    """One expert's answers to one test, by image id."""

    file: Path
    test_id: str
    expert: str
    by_id: Mapping[str, Answer]


def read_answers(path: Path) -> Answers:
    """Answers of a JSON or CSV file that the page gave; raises BadInput, one sentence, for anything else."""
    data = read_bytes(path)
    text = decoded(path, data, "text of answers")
    if not text.lstrip().startswith("{"):
        return _from_csv(path, data)
    try:
        return _from_json(path, text)
    except RecursionError as error:
        raise BadInput(f"{path}: the answers are damaged ({error}); download them again.") from error


def _from_json(path: Path, text: str) -> Answers:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(
            f"{path}: the answers break off or are damaged (line {error.lineno}); download them again."
        ) from error
    if not isinstance(found, dict) or found.get("format") != ANSWERS_FORMAT:
        raise BadInput(f"{path}: no answers to a Visual Turing Test; give the file that the page downloads.")
    rows = found.get("answers")
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise BadInput(f"{path}: holds no list of answers; download it from the page again.")
    answers: list[tuple[str, Answer]] = []
    for row in rows:
        values = [row.get("real"), row.get("positive")]
        if not all(v is None or isinstance(v, bool) for v in values):
            raise BadInput(f"{path}: image {row.get('id')!r}: an answer is true, false or null; correct it.")
        answers.append((str(row.get("id")), Answer(*values)))
    return _collect(path, found.get("test_id"), found.get("expert"), answers)


def _from_csv(path: Path, data: bytes) -> Answers:
    rows = parse_table(path, data, optional=COLUMNS)
    missing = [c for c in COLUMNS if c not in rows.columns]
    if missing:
        raise BadInput(
            f"{path}: the column {', '.join(missing)} is missing; give the CSV or JSON of the page."
        )
    heads: set[tuple[str, str]] = set()
    answers: list[tuple[str, Answer]] = []
    for row in rows:
        heads.add((row["test_id"], row["expert"]))
        said: dict[str, bool | None] = {}
        for column, words in WORDS.items():
            word = row[column].lower()
            if word and word not in words:
                raise BadInput(
                    f"{row.where}: {column} is '{shown(word)}'; it is {' or '.join(words)}, or empty."
                )
            said[column] = words.get(word)
        answers.append((row["id"], Answer(said["origin"], said["label"])))
    if len(heads) != 1:
        what = "no answer" if not heads else "several tests or experts"
        raise BadInput(f"{path}: holds {what}; a file holds one expert's answers to one test.")
    test_id, expert = heads.pop()
    return _collect(path, test_id, expert, answers)


def _collect(path: Path, test_id: Any, expert: Any, rows: Iterable[tuple[str, Answer]]) -> Answers:
    if not isinstance(test_id, str) or not test_id:
        raise BadInput(f"{path}: does not say which test it answers; download it from the page again.")
    if not isinstance(expert, str) or not expert.strip():
        raise BadInput(f"{path}: does not say who answered; add the expert's name.")
    by_id: dict[str, Answer] = {}
    for name, answer in rows:
        if name in by_id:
            raise BadInput(f"{path}: image {name} is answered twice; keep one of the two.")
        by_id[name] = answer
    return Answers(path, test_id, expert.strip(), by_id)
