"""What leaves the laboratory carries pseudonyms: of the case, and of the names of its files.

With SMEARFLOW_PSEUDONYM_KEY, names become keyed hashes (HMAC-SHA256, RFC 2104) that only who holds the
key can trace; without it they stay.  Slides and fields keep the names that the manifest gives them.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from pathlib import PurePosixPath

from pipeline.types import Case
from storage.keys import PSEUDONYM, key_of

FILE_SUFFIXES = 12  # of a file name's extension, kept: it says what kind of file it was

# What no name may touch: letters and digits, and the point or exponent of a number it would be a part of.
_BEFORE = r"(?<![^\W_])(?<!\d[.,])(?<!\d[eE][+-])"
_AFTER = r"(?![^\W_])(?![.,]\d)"


def _keyed(text: str, what: str) -> str | None:
    key = key_of(PSEUDONYM)
    if key is None:
        return None
    return hmac.new(key, f"{what}{text}".encode(), hashlib.sha256).hexdigest()[:12].upper()


def pseudonym(case_id: str) -> str:
    """The case's name in what may leave the laboratory."""
    keyed = _keyed(case_id, "")
    return case_id if keyed is None else f"P-{keyed}"


def file_pseudonym(file: str) -> str:
    """A file's name in what may leave the laboratory: its folder is not told, its extension is."""
    keyed = _keyed(file, "file\n")
    return file if keyed is None else f"F-{keyed}{PurePosixPath(file).suffix[:FILE_SUFFIXES]}"


def deidentified_text(case: Case) -> Callable[[str], str]:
    """A function that gives a text with the case and its files under their pseudonyms, as whole words: the
    case 12 is no part of 120, of 0.12 or of 1e-12."""
    names = {f: file_pseudonym(f) for f in _files(case)} | {case.case_id: pseudonym(case.case_id)}
    # The longest first: one name may be a part of another.
    ordered = sorted((n for n in names if names[n] != n), key=len, reverse=True)
    if not ordered:
        return lambda text: text
    pattern = re.compile(f"{_BEFORE}(?:{'|'.join(map(re.escape, ordered))}){_AFTER}")
    return lambda text: pattern.sub(lambda found: names[found.group()], text)


def _files(case: Case) -> set[str]:
    return {i.file for i in case.images} | {p.file for p in case.problems if p.file}


def deidentified(case: Case) -> Case:
    """The case under its pseudonym, and its files under theirs wherever they are named."""
    told = deidentified_text(case)
    problems = tuple(
        p.model_copy(
            update={"message": told(p.message), "file": file_pseudonym(p.file) if p.file else p.file}
        )
        for p in case.problems
    )
    images = tuple(i.model_copy(update={"file": file_pseudonym(i.file)}) for i in case.images)
    return case.model_copy(
        update={"case_id": pseudonym(case.case_id), "images": images, "problems": problems}
    )
