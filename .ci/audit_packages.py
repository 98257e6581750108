#!/usr/bin/env python3
"""Known vulnerabilities of the locked packages, by pip-audit.

Exit status 1 where one is known.  Where no advisory database answers, it says so and passes: a machine
without a network cannot know, and must not pretend to.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
SKIPPED = "pip-audit: SKIPPED, {why}; run 'make audit' where an advisory database can be reached."


def judge(output: str, errors: str) -> tuple[int, str]:
    """Exit status and what to say, of pip-audit's JSON (stdout) and messages (stderr)."""
    try:
        packages: list[dict[str, Any]] = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (errors.strip().splitlines() or ["it gave no answer"])[-1][:200]
        return 0, SKIPPED.format(why=f"no advisory database answers ({last})")
    audited = [p for p in packages if "skip_reason" not in p]
    vulnerable = [p for p in audited if p.get("vulns")]
    if not audited:
        return 0, SKIPPED.format(why=f"the index knows advisories for none of {len(packages)} packages")
    lines = []
    for package in vulnerable:
        for flaw in package["vulns"]:
            fixed = ", ".join(flaw.get("fix_versions") or ["no version"])
            lines.append(f"{package['name']} {package['version']}: {flaw['id']}, fixed in {fixed}")
    known = f"pip-audit: {len(audited)} of {len(packages)} packages audited, {len(lines)} known flaws"
    return (1 if lines else 0), "\n".join([*lines, known])


def main() -> int:
    program = Path(sys.executable).parent / "pip-audit"
    command = [str(program), "--requirement", str(LOCK), "--no-deps", "--disable-pip", "--format", "json"]
    try:
        done = subprocess.run(
            [*command, "--progress-spinner", "off", "--timeout", "20"],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    except (subprocess.TimeoutExpired, FileNotFoundError) as error:
        print(SKIPPED.format(why=f"{type(error).__name__}"), file=sys.stderr)
        return 0
    status, text = judge(done.stdout, done.stderr)
    print(text, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
