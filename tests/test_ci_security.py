"""The secret scan finds what it should and nothing else; the package audit never passes what it saw."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCAN = _script("secret_scan")
AUDIT = _script("audit_packages")


# Put together here, so that the scan of this very file finds none.
@pytest.mark.parametrize(
    "line",
    [
        "-----BEGIN " + "RSA PRIVATE KEY-----",
        "-----BEGIN " + "OPENSSH PRIVATE KEY-----",
        "key = AKIA" + "IOSFODNN7EXAMPLE",
        "gh" + "p_" + "a1B2" * 9,
        "hf_" + "aB3" * 11,
        "url: postgresql://lab:" + "Tr0ub4dor&3x@db.example.org/results",
        "pass" + 'word = "' + "q8Zt1LmX04vBn7Rs" + '"',
        "'api_" + "key': '" + "9f8e7d6c5b4a39281706f5e4d3c2b1aZ" + "'",
        "xoxb-" + "1234567890-abcdef",
    ],
)
def test_a_secret_is_found(line: str) -> None:
    assert [n for n, _ in SCAN.findings(f"first line\n{line}\n")] == [2]
    assert list(SCAN.findings(f"{line}  # {SCAN.ALLOW}, a test")) == []


@pytest.mark.parametrize(
    "line",
    [
        "postgresql://USER:PASSWORD@HOST/NAME",
        "postgresql://lab:secret@host/db",
        "POSTGRES_PASSWORD_FILE: /run/secrets/postgres_password",
        'password = os.environ["SMEARFLOW_DATABASE"]',
        'sha256: "' + "0123456789abcdef" * 4 + '"',
        'token = "brightfield-and-dic-images"',
        "AWS_SECRET_ACCESS_KEY: ${S3_SECRET}",
    ],
)
def test_an_example_or_a_hash_is_none(line: str) -> None:
    assert list(SCAN.findings(line)) == []


def test_nothing_that_git_tracks_looks_like_a_secret(capsys: pytest.CaptureFixture[str]) -> None:
    assert SCAN.main([]) == 0, capsys.readouterr().err


def test_a_known_vulnerability_fails_the_audit_and_no_answer_is_said() -> None:
    package = {"name": "x", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}
    found = {"dependencies": [package]}
    status, text = AUDIT.judge(json.dumps(found), "")
    assert (status, "x 1: PYSEC-1, fixed in 2" in text) == (1, True)
    package["vulns"] = []
    assert AUDIT.judge(json.dumps(found), "")[0] == 0
    status, text = AUDIT.judge(json.dumps({"dependencies": [{"name": "x", "skip_reason": "not found"}]}), "")
    assert (status, "SKIPPED" in text) == (0, True)
    status, text = AUDIT.judge("", "ConnectionError: no route\n")
    assert (status, "SKIPPED, no advisory database answers (ConnectionError: no route)" in text) == (0, True)
