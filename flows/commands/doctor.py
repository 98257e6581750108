"""`smearflow doctor`: what is wrong with this installation, and what to do about it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from flows.console import json_option, output

Finding = tuple[str, str]  # level (ok, warning, error), sentence

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "onnxruntime",
    "opencv-python",
    "openslide-python",
    "zarr",
    "dask",
    "distributed",
    "prefect",
    "fastapi",
    "ultralytics",
    "scikit-image",
)


def check_python() -> list[Finding]:
    return [("ok", f"Python {'.'.join(map(str, sys.version_info[:3]))}")]


def locked_versions() -> dict[str, str]:
    """What requirements.lock names, where smearflow runs from a clone."""
    lock = Path(__file__).resolve().parents[2] / "requirements.lock"
    if not lock.is_file():
        return {}
    return dict(line.split("==", 1) for line in lock.read_text().split() if "==" in line)


def check_packages() -> list[Finding]:
    findings: list[Finding] = []
    locked = locked_versions()
    for name in PACKAGES:
        try:
            found = version(name)
        except PackageNotFoundError:
            findings.append(("error", f"{name} is not installed; run 'make setup'."))
            continue
        wanted = locked.get(name)
        if wanted and wanted != found:
            findings.append(
                ("warning", f"{name} {found} is installed, {wanted} is locked; run 'make setup'.")
            )
    if not findings:
        findings.append(
            (
                "ok",
                f"{len(PACKAGES)} libraries, at the locked versions"
                if locked
                else f"{len(PACKAGES)} libraries (no lock file beside this installation to compare with)",
            )
        )
    return findings


def check_imports() -> list[Finding]:
    findings: list[Finding] = []
    for module, fix in (
        ("torchvision.ops", "torch and torchvision do not fit each other; run 'make setup'"),
        ("openslide", "install openslide-bin"),
        ("cv2", "on a bare Debian: apt-get install libgl1 libglib2.0-0, or opencv-python-headless"),
    ):
        try:
            __import__(module)
        except Exception as error:  # any failure to import is the finding itself
            findings.append(("error", f"{module} does not import ({error}); {fix}."))
    return findings or [("ok", "image and network libraries import")]


def check_weights() -> list[Finding]:
    from detectors.painted import checked_companions
    from flows.naming import check_painted_scale, check_painter
    from pipeline.errors import SmearflowError
    from pipeline.settings import Settings, named_models
    from storage.packages import ModelPackage, list_packages
    from storage.registry import describe

    findings: list[Finding] = []
    try:
        packages = list_packages()
    except SmearflowError as error:
        return [("error", str(error))]
    for package in packages:
        try:
            package.verify()
        except SmearflowError as error:
            findings.append(("error", str(error)))
    settings = Settings()
    for key, (task, name) in named_models(settings).items():
        try:
            describe(task, name)
        except SmearflowError as error:
            findings.append(("error", f"the default model of {key} is missing: {error}"))
    try:
        dic = describe("detector", settings.detection.dic_detector)
        if isinstance(dic, ModelPackage):
            checked_companions(dic)
        check_painter(settings)
        check_painted_scale(settings)
    except SmearflowError as error:
        findings.append(("error", str(error)))
    return findings or [("ok", f"{len(packages)} model packages, hashes as their cards say")]


def check_gpu() -> list[Finding]:
    try:
        import torch
    except Exception as error:  # reported by check_imports as well
        return [("error", f"torch does not import ({error}); run 'make setup'.")]
    if torch.cuda.is_available():
        return [("ok", f"GPU: {torch.cuda.get_device_name(0)}")]
    return [("ok", f"no GPU: models run on {os.cpu_count()} CPU cores")]


def check_server() -> list[Finding]:
    import urllib.error
    import urllib.request

    url = os.environ.get("PREFECT_API_URL")
    if not url:
        return [("ok", "no PREFECT_API_URL: runs use Prefect's own temporary server")]
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=5) as answer:
            answer.read()
    except (urllib.error.URLError, OSError, ValueError) as error:
        return [
            (
                "error",
                f"PREFECT_API_URL={url} does not answer ({error}); start 'prefect server start' or unset it.",
            )
        ]
    return [("ok", f"Prefect server at {url}")]


def check_keys() -> list[Finding]:
    from pipeline.errors import BadInput
    from storage.keys import AUDIT, PSEUDONYM, key_of

    findings: list[Finding] = []
    for variable, with_it, without in (
        (PSEUDONYM, "results carry pseudonyms", "results carry the case ids and file names"),
        (AUDIT, "the audit log is sealed by a key", "the audit log's seals can be made by anybody"),
    ):
        try:
            is_set = key_of(variable) is not None
        except BadInput as error:
            findings.append(("error", str(error)))
            continue
        findings.append(("ok", f"{variable} is set: {with_it}" if is_set else f"no {variable}: {without}"))
    return findings


def check_disk() -> list[Finding]:
    free_gb = shutil.disk_usage(Path.cwd()).free / 1e9
    level = "warning" if free_gb < 5 else "ok"
    return [
        (level, f"{free_gb:.0f} GB free on this disk" + ("; a night may need more." if free_gb < 5 else ""))
    ]


CHECKS: tuple[tuple[str, Callable[[], list[Finding]]], ...] = (
    ("python", check_python),
    ("versions", check_packages),
    ("imports", check_imports),
    ("weights", check_weights),
    ("gpu", check_gpu),
    ("server", check_server),
    ("keys", check_keys),
    ("disk", check_disk),
)


@click.command(name="doctor")
@json_option
def command(as_json: bool) -> None:
    """Say what is wrong with this installation: versions, weights, GPU, server, keys, disk."""
    with output(as_json) as show:
        rows = [
            {"check": name, "level": level, "message": message}
            for name, check in CHECKS
            for level, message in check()
        ]
        bad = [r for r in rows if r["level"] == "error"]
        lines = [f"{r['level']:<8} {r['check']:<9} {r['message']}" for r in rows]
        lines.append("Nothing is wrong." if not bad else f"{len(bad)} problem(s) to fix.")
        show({"ok": not bad, "findings": rows}, "\n".join(lines))
    if bad:
        sys.exit(1)
