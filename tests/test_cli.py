"""The command line's promises that need no model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.cli import COMMANDS, group, main
from pipeline.errors import BadInput

HEAVY = ("numpy", "cv2", "torch", "prefect", "dask", "pandas", "pydantic", "skimage", "onnxruntime", "fhir")


def test_help_imports_no_heavy_library() -> None:
    code = (
        "import sys, flows.cli\n"
        "try: flows.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        f"print('LOADED', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip().endswith("LOADED []")


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_explains_itself(name: str) -> None:
    result = CliRunner().invoke(group, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output


def smearflow(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *args], capture_output=True, text=True, timeout=120, check=False
    )


def test_a_missing_image_is_one_sentence_and_exit_status_2(tmp_path: Path) -> None:
    done = smearflow("align", str(tmp_path / "no.tif"), str(tmp_path / "no2.tif"), "--json")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert "no.tif" in done.stderr


def test_a_missing_case_folder_is_one_sentence_and_exit_status_2(tmp_path: Path) -> None:
    done = smearflow("run", str(tmp_path / "nowhere"), "--store", str(tmp_path / "store"), "--json")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_settings_key_is_refused_by_name(tmp_path: Path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("detection:\n  treshold: 0.5\n")
    done = smearflow("run", str(tmp_path), "--store", str(tmp_path / "s"), "--config", str(config))
    assert done.returncode == 2
    assert "treshold" in done.stderr


def test_models_prints_one_json_document_and_nothing_else() -> None:
    done = smearflow("models", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert {r["task"] for r in rows} >= {"detector", "segmenter", "stainer", "classifier"}


def test_an_unknown_model_is_refused_with_the_names_that_exist() -> None:
    done = smearflow("models", "no-such-model")
    assert done.returncode == 2
    assert "leukocyte-brightfield" in done.stderr


def test_doctor_finds_nothing_wrong_in_a_sound_installation() -> None:
    done = smearflow("doctor", "--json")
    found = json.loads(done.stdout)
    assert found["ok"], [f for f in found["findings"] if f["level"] == "error"]
    assert {f["check"] for f in found["findings"]} == {
        "python",
        "versions",
        "imports",
        "weights",
        "gpu",
        "server",
        "keys",
        "disk",
    }


def test_doctor_names_a_stainer_that_the_models_beside_it_were_not_made_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.commands.doctor import check_weights
    from storage.packages import find_package, write_package

    shipped = find_package("dic-to-mgg")
    assert shipped is not None
    weights = shipped.state_dict()
    name = next(k for k, v in weights.items() if v.is_floating_point())
    write_package(tmp_path / "dic-to-mgg", shipped.card.model_dump(), {**weights, name: weights[name] * 2})
    monkeypatch.setenv("SMEARFLOW_WEIGHTS", str(tmp_path))
    ((level, said),) = check_weights()
    assert level == "error"
    assert "leukocyte-dic was measured with other weights of stainer 'dic-to-mgg'" in said


def test_the_demo_asks_where_its_cases_shall_lie_where_the_store_is_remote() -> None:
    done = CliRunner().invoke(group, ["demo", "--store", "memory://lab"])
    assert isinstance(done.exception, BadInput)
    assert "give --inbox" in str(done.exception)


def test_doctor_names_every_model_that_the_settings_name_and_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flows.commands.doctor import check_weights
    from pipeline.errors import UnknownName
    from pipeline.settings import Settings, named_models

    def gone(task: str, name: str) -> None:
        raise UnknownName(task, name, [])

    monkeypatch.setattr("storage.registry.describe", gone)
    said = " ".join(text for level, text in check_weights() if level == "error")
    for key, (task, name) in named_models(Settings()).items():
        assert key in said
        assert f"{task} '{name}'" in said


def test_doctor_names_a_weight_file_that_was_altered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    from flows.commands.doctor import check_weights
    from storage.packages import list_packages

    package = list_packages()[0]
    shutil.copytree(package.folder, tmp_path / package.folder.name)
    weights = tmp_path / package.folder.name / package.weights_path.name
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0\0")
    monkeypatch.setenv("SMEARFLOW_WEIGHTS", str(tmp_path))
    findings = check_weights()
    assert any(level == "error" and str(weights) in text for level, text in findings)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TypeError("no\nlen"), "(TypeError: no len); this is a defect of smearflow, please report it."),
        (OSError(28, "No space left on device", "/x"), "the machine refused that"),
    ],
)
def test_an_error_that_nobody_foresaw_is_one_sentence_and_exit_status_1(
    error: Exception,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(group, "get_command", broken)
    monkeypatch.delenv("SMEARFLOW_DEBUG", raising=False)
    with pytest.raises(SystemExit) as stop:
        main(["models"])
    told = capsys.readouterr().err.strip()
    assert stop.value.code == 1
    assert said in told
    assert "\n" not in told
    monkeypatch.setenv("SMEARFLOW_DEBUG", "1")
    with pytest.raises(SystemExit):
        main(["models"])
    assert "Traceback" in capsys.readouterr().err


SIZED = (
    "align",
    "classify",
    "detect",
    "evaluate classifier",
    "evaluate detector",
    "explain",
    "run",
    "segment",
    "stain",
)


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-0.1", "96"])
@pytest.mark.parametrize("command", SIZED)
def test_a_pixel_size_that_no_smear_can_have_is_refused_by_every_command(command: str, value: str) -> None:
    result = CliRunner().invoke(group, [*command.split(), "--pixel-size", value])
    assert isinstance(result.exception, BadInput)
    assert str(result.exception).startswith("--pixel-size: ")
    assert value.lstrip("-") in str(result.exception)


@pytest.mark.parametrize("command", ["classify", "detect", "explain", "segment", "stain"])
def test_what_the_reader_notes_of_a_file_is_said_by_every_command_that_looks_at_images(
    command: str, tmp_path: Path
) -> None:
    import numpy as np
    import tifffile

    path = tmp_path / "cell.tif"
    image = np.full((64, 64, 3), 225, np.uint8)
    image[20:44, 18:46] = (120, 80, 160)
    tifffile.imwrite(path, image, photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    out = ["--out", str(tmp_path / "out")] if command in ("explain", "segment", "stain") else []
    out += ["--class", "neutrophil"] if command == "explain" else []
    done = CliRunner().invoke(group, [command, str(path), "--pixel-size", "0.1", *out])
    assert f"{path}: its orientation tag is not applied" in done.stderr


def test_an_impossible_pixel_size_is_one_sentence_and_exit_status_2(tmp_path: Path) -> None:
    done = smearflow("classify", str(tmp_path / "cell.png"), "--pixel-size", "inf", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("status", "cases", "code"),
    [
        ("alarm", ["held back", "held back"], 4),
        ("stopped", ["held back", "held back"], 143),
        ("completed", ["busy", "busy"], 0),
        ("completed", ["failed", "busy"], 3),
    ],
)
def test_a_demo_names_cases_without_a_result_and_exits_as_a_night_does(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: str,
    cases: list[str],
    code: int,
) -> None:
    import flows.local
    from flows.commands.demo import CASES

    for case_id, _, _ in CASES:
        (tmp_path / "inbox" / case_id).mkdir(parents=True)
        (tmp_path / "inbox" / case_id / "manifest.csv").touch()
    night = {
        "status": status,
        "message": "of the night",
        "cases": [{"case": f"C-{i}", "status": s, "error": f"why {i}"} for i, s in enumerate(cases)],
    }
    monkeypatch.setattr(flows.local, "run_night", lambda *a, **k: night)
    line = ["demo", "--store", str(tmp_path / "store")]
    done = CliRunner().invoke(group, line)
    assert done.exit_code == code, done.output
    for i, s in enumerate(cases):
        assert f"C-{i}: {s}: why {i}" in done.output


@pytest.mark.parametrize(
    "line",
    [
        ["status"],
        ["retry", "--failed"],
        ["audit", "NO-CASE"],
        ["report", "NO-CASE"],
        ["review", "NO-CASE", "--reviewer", "X", "--sign"],
        ["run", "no-folder"],
        ["nightly", "no-inbox"],
    ],
)
def test_every_command_takes_the_store_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: list[str]
) -> None:
    from pipeline.errors import SmearflowError

    monkeypatch.setenv("SMEARFLOW_STORE", str(tmp_path))
    done = CliRunner().invoke(group, line)
    assert done.exit_code == 0 or isinstance(done.exception, SmearflowError), done.output
    assert "--store" not in done.output
    monkeypatch.delenv("SMEARFLOW_STORE")
    assert "--store" in CliRunner().invoke(group, line).output


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_a_clone_that_was_moved_is_set_up_anew(tmp_path: Path) -> None:
    """The scripts of its environment name the folder that it was made in, and would not start."""
    root = Path(__file__).resolve().parent.parent
    clone = tmp_path / "clone"
    (clone / ".venv" / "bin").mkdir(parents=True)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copyfile(root / name, clone / name)
    (clone / ".venv" / "bin" / "smearflow").write_text(f"#!{clone}/.venv/bin/python\n")
    (clone / ".venv" / ".installed").touch()

    def would_do(folder: Path) -> str:
        return subprocess.run(
            ["make", "-n", "setup"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout

    assert "venv" not in would_do(clone)
    moved = clone.rename(tmp_path / "moved")
    assert "-m venv --clear .venv" in would_do(moved)
