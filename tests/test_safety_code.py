"""What the code of the rooms never does, and what every shipped model package is held to."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import BadModelPackage
from storage.packages import list_packages
from storage.registry import load

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("pipeline", "flows", "storage", "detectors", "stainers", "classifiers", "phantoms")


def _calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call in the rooms, with where it stands and its dotted name."""
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def _keyword(call: ast.Call, name: str) -> Any:
    found = next((k.value for k in call.keywords if k.arg == name), None)
    return found.value if isinstance(found, ast.Constant) else found


def test_nothing_is_unpickled_evaluated_or_handed_to_a_shell() -> None:
    forbidden = (
        "pickle.load",
        "pickle.loads",
        "joblib.load",
        "eval",
        "exec",
        "os.system",
        "os.popen",
        "yaml.load",
    )
    wrong = []
    for where, call in _calls():
        name = ast.unparse(call.func)
        if name in forbidden or name.endswith(("read_pickle", "unsafe_load")):
            wrong.append(f"{where} {name}")
        if name == "torch.load" and _keyword(call, "weights_only") is not True:
            wrong.append(f"{where} {name}")
        if name.endswith("np.load") and _keyword(call, "allow_pickle") is True:
            wrong.append(f"{where} {name}")
        if _keyword(call, "shell") is True:
            wrong.append(f"{where} shell=True")
    assert wrong == []


def test_sql_is_never_put_together_from_text() -> None:
    wrong = []
    for where, call in _calls():
        if not where.startswith("storage/") or not call.args:
            continue
        if ast.unparse(call.func).rpartition(".")[2] in ("text", "exec_driver_sql", "execute") and isinstance(
            call.args[0], ast.JoinedStr
        ):
            names = {ast.unparse(v.value) for v in call.args[0].values if isinstance(v, ast.FormattedValue)}
            wrong += [f"{where} {n}" for n in names if not n.isupper() and "BUSY_TIMEOUT" not in n]
    assert wrong == []


PACKAGES = {p.name: p for p in list_packages()}


@pytest.fixture(params=sorted(PACKAGES))
def copied(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A shipped package's task, and a copy of its folder."""
    package = PACKAGES[request.param]
    shutil.copytree(package.folder, tmp_path / package.folder.name)
    return package.card.task, tmp_path / package.folder.name


def _refuse_to_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    """No library may see weights that were not checked."""
    import onnxruntime
    import safetensors.torch

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("weights were parsed before their hash was checked")

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    monkeypatch.setattr(safetensors.torch, "load_file", opened)
    monkeypatch.setattr(safetensors.torch, "load", opened)
    monkeypatch.setattr("torch.load", opened)


@pytest.mark.parametrize("damage", ["one bit", "cut", "other file"])
def test_every_shipped_package_is_refused_when_its_weights_are_not_its_cards(
    copied: tuple[str, Path], damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, folder = copied
    weights = next(p for p in folder.iterdir() if p.name in ("model.onnx", "model.safetensors"))
    data = bytearray(weights.read_bytes())
    if damage == "one bit":
        data[len(data) // 2] ^= 1
    elif damage == "cut":
        data = data[:-1]
    else:
        data = bytearray(b"\x80\x04cposix\nsystem\n(S'touch /tmp/smearflow-bomb'\ntR.")
    weights.write_bytes(data)
    _refuse_to_parse(monkeypatch)
    with pytest.raises(BadModelPackage, match="is not the file its card names") as caught:
        load(task, str(folder))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert not Path("/tmp/smearflow-bomb").exists()
