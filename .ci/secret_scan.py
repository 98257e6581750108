#!/usr/bin/env python3
"""Looks for secrets in what git tracks: known forms of keys, and random text that is called a secret.

    python .ci/secret_scan.py [FILE…]

Exit status 1 where something is found.  A line that must stand (a password that lives as long as a
test) carries the words `secret-scan: allow` and why.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

MAX_BYTES = 1 << 20  # larger tracked files are weights and pictures
ALLOW = "secret-scan: allow"
FORMS = {
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----",
    "an AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_[A-Za-z0-9_]{60,}\b",
    "a GitLab token": r"\bglpat-[A-Za-z0-9_-]{20,}\b",
    "a Slack token": r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}\b",
    "a Google key": r"\bAIza[0-9A-Za-z_-]{35}\b",
    "a PyPI token": r"\bpypi-[A-Za-z0-9_-]{50,}\b",
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}\b",
    "a Prefect key": r"\bpn[ub]_[A-Za-z0-9]{30,}\b",
    "a JSON web token": r"\beyJ[A-Za-z0-9_-]{15,}\.eyJ[A-Za-z0-9_-]{15,}\.[A-Za-z0-9_-]{10,}",
    # A word in the place of a password is an example; a mix of kinds of characters is not.
    "a password in a URL": r"\b[a-z][a-z0-9+.-]*://[^\s:/@'\"{}$<>]+:(?=[^\s@]*\d)(?=[^\s@]*[A-Za-z])"
    r"[^\s@'\"{}$<>]{8,}@[A-Za-z0-9.-]+",
}
NAMED = re.compile(
    r"(?i)(?:password|passwd|secret|token|api_?key|access_?key|private_?key|credential)\w*[\"']?\s*[:=]\s*"
    r"[\"']([A-Za-z0-9+/=_-]{16,})[\"']"
)
MIN_BITS = 3.5  # a character; English words joined by hyphens have about 3.3, random base64 of 20 has 4


def entropy_bits(text: str) -> float:
    """Shannon entropy of the characters of a text, in bits a character."""
    counts = Counter(text)
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts.values())


WORDS = re.compile(r"[A-Za-z]+([-_][A-Za-z]+)*([-_]?\d{1,4})?")


def _is_random(text: str) -> bool:
    if WORDS.fullmatch(text) and max(map(len, re.split("[-_]", text))) < 15:
        return False
    kinds = sum(bool(re.search(p, text)) for p in ("[a-z]", "[A-Z]", "[0-9]"))
    return entropy_bits(text) >= MIN_BITS and kinds >= 2


def findings(text: str) -> Iterator[tuple[int, str]]:
    """(line, what it looks like) of each secret in a text."""
    for number, line in enumerate(text.splitlines(), start=1):
        if ALLOW in line:
            continue
        for what, form in FORMS.items():
            if re.search(form, line):
                yield number, what
        for found in NAMED.finditer(line):
            if _is_random(found.group(1)):
                yield number, "random text that is called a secret"


def tracked(root: Path) -> list[Path]:
    """The files that git tracks, and those it would take."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        check=True,
    ).stdout
    return [root / name for name in listed.decode().split("\0") if name]


def main(arguments: list[str]) -> int:
    root = Path(__file__).resolve().parent.parent
    wrong = 0
    for path in [Path(a) for a in arguments] or tracked(root):
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            continue
        data = path.read_bytes()
        if b"\0" in data[:8192]:
            continue
        for line, what in findings(data.decode("utf-8", "replace")):
            print(f"{path}:{line}: this looks like {what}", file=sys.stderr)
            wrong += 1
    if wrong:
        print(f"{wrong} places look like secrets; take them out, or say '{ALLOW}' and why.", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
