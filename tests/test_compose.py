"""compose.yaml, the image and their scripts: what they name exists, and nothing secret stands in them."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
# Of the Compose Specification, what may stand at the top and in a service of this file.
TOP = {"name", "services", "networks", "volumes", "secrets", "configs"}
SERVICE = {
    *("image", "build", "command", "entrypoint", "environment", "volumes", "ports", "networks", "depends_on"),
    *("healthcheck", "restart", "secrets", "profiles", "deploy", "security_opt", "cap_drop", "user", "init"),
}
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}
OURS = "smearflow:"


def _document() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return found


SERVICES: dict[str, dict[str, Any]] = _document()["services"]


def test_the_file_has_the_structure_of_the_compose_specification() -> None:
    document = _document()
    assert {k for k in document if not k.startswith("x-")} <= TOP
    for name, service in SERVICES.items():
        assert set(service) <= SERVICE, name
        assert "image" in service, name
        assert isinstance(service.get("command", []), list), f"{name}: a string would go through a shell"
        for depends, how in service.get("depends_on", {}).items():
            assert depends in SERVICES
            assert how["condition"] in CONDITIONS
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[depends], f"{name} waits for the health of {depends}"
            if how["condition"] == "service_completed_successfully":
                assert SERVICES[depends]["restart"] == "no"
        for network in service["networks"]:
            assert network in document["networks"]
        for secret in service.get("secrets", []):
            assert secret in document["secrets"]


def test_images_are_pinned_and_what_is_mounted_exists() -> None:
    document = _document()
    for name, service in SERVICES.items():
        tag = service["image"].rpartition(":")[2]
        assert tag not in ("", "latest"), name
        assert service["image"].startswith(OURS) == ("build" in service), name
        for volume in service.get("volumes", []):
            source, target = re.sub(r"\$\{(\w+)[^}]*\}", r"$\1", volume).split(":")[:2]
            assert target.startswith("/"), volume
            if source.startswith("./"):
                assert (ROOT / source).exists(), volume
            elif not source.startswith("$"):
                assert source in document["volumes"], volume


def test_no_secret_stands_in_the_file_and_every_variable_is_explained() -> None:
    text = (ROOT / "compose.yaml").read_text()
    example = (ROOT / "deploy" / "env.example").read_text()
    for variable, rest in re.findall(r"\$\{(\w+)([^}]*)\}", text):
        assert rest.startswith(":?"), f"{variable} may not silently be empty"
        assert re.search(rf"^{variable}=", example, re.M), f"{variable} is not in deploy/env.example"
        assert not re.search("PASSWORD|SECRET|TOKEN", variable), f"{variable} belongs into deploy/secrets"
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|_KEY$|DATABASE", variable):
                assert str(value).startswith("/run/secrets/"), f"{name}: {variable}"
    for secret in _document()["secrets"].values():
        assert secret["file"].startswith("./deploy/secrets/")
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def test_only_prefects_page_is_published_and_only_to_this_machine() -> None:
    published = {n: s["ports"] for n, s in SERVICES.items() if "ports" in s}
    assert published == {"prefect-server": ["127.0.0.1:4200:4200"]}
    document = _document()
    inner = {n for n, v in document["networks"].items() if (v or {}).get("internal")}
    for name, service in SERVICES.items():
        if name != "prefect-server":
            assert set(service["networks"]) <= inner, f"{name}: Dask and the store ask nobody who they are"


def _command(service: dict[str, Any]) -> list[str]:
    command = [str(c) for c in service["command"]]
    return command[1:] if command[0].endswith("with-secrets.sh") else command


# The programs of the services, each with the words that name its subcommand.
PROGRAMS = (
    ("prefect", "server", "start"),
    ("prefect", "worker", "start"),
    ("prefect", "work-pool", "create"),
    ("prefect", "deploy"),
    ("dask", "scheduler"),
    ("dask", "worker"),
)


def _lines() -> list[list[str]]:
    found = []
    for service in SERVICES.values():
        if service["image"].startswith(OURS):
            command = _command(service)
            found += [p.split() for p in command[2].split("&&")] if command[0] == "sh" else [command]
    return found


def test_every_command_and_option_of_our_services_exists() -> None:
    used: dict[tuple[str, ...], set[str]] = {}
    for line in _lines():
        if line[0] == "python":
            compile(line[2], "compose.yaml", "exec")
            continue
        words = [w for w in line if not w.startswith("-")]
        program = next(p for p in PROGRAMS if tuple(words[: len(p)]) == p)
        used.setdefault(program, set()).update(w for w in line if w.startswith("--"))
    assert set(used) == set(PROGRAMS)
    for program, options in used.items():
        shown = subprocess.run(
            [str(BIN / program[0]), *program[1:], "--help"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert shown.returncode == 0, shown.stderr
        missing = [o for o in options if o not in shown.stdout]
        assert missing == [], f"{' '.join(program)} has no {missing}"


def test_every_variable_of_ours_is_one_that_the_program_reads() -> None:
    code = "\n".join(
        p.read_text() for room in ("flows", "pipeline", "storage") for p in (ROOT / room).rglob("*.py")
    )
    script = (ROOT / "deploy" / "with-secrets.sh").read_text()
    named = set(re.findall(r"SMEARFLOW_\w+", (ROOT / "compose.yaml").read_text() + script))
    assert {"SMEARFLOW_DATABASE", "SMEARFLOW_STORE", "SMEARFLOW_SCHEDULER"} <= named
    for variable in named:
        assert f'"{variable}"' in code, variable


def test_secrets_reach_the_command_that_follows_and_no_output(tmp_path: Path) -> None:
    script = (ROOT / "deploy" / "with-secrets.sh").read_text()
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    for name in _document()["secrets"]:
        (secrets / name).write_text(f"value-of-{name}\n")
        assert name == "postgres_password" or f"/run/secrets/{name}" in script, name
    local = tmp_path / "with-secrets.sh"
    local.write_text(script.replace("/run/secrets", str(secrets)))
    done = subprocess.run(
        [
            "sh",
            str(local),
            "sh",
            "-c",
            'test "$SMEARFLOW_AUDIT_KEY" = value-of-audit_key && echo "$SMEARFLOW_DATABASE"',
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (
        done.stdout.strip() == "postgresql://smearflow:value-of-results_db_password@postgres:5432/smearflow"
    )
    assert done.stderr == ""
    silent = subprocess.run(["sh", str(local), "true"], capture_output=True, text=True, check=True)
    assert silent.stdout + silent.stderr == ""
    for path in (ROOT / "deploy").glob("*.sh"):
        assert path.stat().st_mode & stat.S_IXUSR, path
        assert subprocess.run(["sh", "-n", str(path)], check=False).returncode == 0


@pytest.mark.parametrize("name", ["pseudonym_key", "audit_key", "results_db_password"])
@pytest.mark.parametrize("fault", ["empty", "unreadable"])
def test_a_secret_that_is_empty_or_cannot_be_read_starts_no_command(
    tmp_path: Path, name: str, fault: str
) -> None:
    """Else a run would write case ids where pseudonyms are meant, without a word."""
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    if fault == "empty":
        (secrets / name).write_text("\n")
    else:
        (secrets / name).symlink_to(tmp_path / "gone")  # root reads any file that is there
    local = tmp_path / "with-secrets.sh"
    script = (ROOT / "deploy" / "with-secrets.sh").read_text()
    local.write_text(script.replace("/run/secrets", str(secrets)))
    done = subprocess.run(["sh", str(local), "echo", "started"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert str(secrets / name) in done.stderr


def test_the_image_is_built_from_the_lock_and_runs_as_nobody_special() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert any("--requirement requirements.lock" in line for line in lines)
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users[-1] != "root"
    for line in lines:
        if line.startswith("COPY "):
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists()
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".git", ".venv", ".env"} <= set(ignored)
    assert "deploy/secrets" in ignored


def test_a_slot_outlives_a_restart_of_the_server_and_a_night_holds_none() -> None:
    """In memory alone, a slot whose run died with the server is never free again."""
    name = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"
    on_disk = "prefect.server.concurrency.lease_storage.filesystem"
    server = SERVICES["prefect-server"]
    assert server["environment"][name] == on_disk
    home = re.search(r"PREFECT_HOME=(\S+)", (ROOT / "Dockerfile").read_text())
    assert home is not None
    assert f"prefect:{home[1]}" in server["volumes"]
    assert f"export {name}={on_disk}" in (ROOT / "docs" / "deploy.md").read_text()
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert not any("concurrency_limit" in d for d in deployments)
