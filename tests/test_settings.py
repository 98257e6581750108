"""One settings model: strict, documented, and loadable from YAML."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from pipeline.errors import BadInput
from pipeline.settings import Settings, load_settings, named_models

ROOT = Path(__file__).resolve().parent.parent


def keys() -> list[tuple[str, str, object]]:
    return [
        (section, key, getattr(getattr(Settings(), section), key))
        for section, field in Settings.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        for key in field.annotation.model_fields
    ]


@pytest.mark.parametrize(("section", "key", "default"), keys(), ids=lambda v: str(v)[:30])
def test_every_key_stands_in_the_documentation_with_its_default(
    section: str, key: str, default: object
) -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    shown = list(default) if isinstance(default, tuple) else default
    lines = [r for r in text.splitlines() if r.startswith(f"| `{section}.{key}` | `{shown}` |")]
    assert len(lines) == 1
    assert len(lines[0].split("|")[3].strip()) > 5  # and with what it does


def test_every_environment_variable_stands_in_the_documentation() -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    rooms = ("pipeline", "flows", "detectors", "stainers", "classifiers", "storage", "phantoms")
    used = {
        name
        for room in rooms
        for path in (ROOT / room).rglob("*.py")
        for name in re.findall(r"\bSMEARFLOW_[A-Z_]+\b", path.read_text(encoding="utf-8"))
    }
    assert len(used) > 9
    assert {name for name in used if f"`{name}`" not in text} == set()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"patches": {"sizes_px": []}}, "staining.size_px is 256"),
        ({"patches": {"sizes_px": [360]}, "staining": {"size_px": 360}}, "classification.patch_px is 256"),
        ({"staining": {"size_px": 360}}, "they have to be the same"),
        ({"patches": {"sizes_px": [256, 0]}}, "a size below 1"),
        ({"detection": {"threshold": 0.01}}, "detection.threshold"),
        ({"report": {"max_bytes": 0}}, "report.max_bytes"),
        ({"detection": None}, "'detection'"),
        ({"detection": [1]}, "'detection'"),
        ({"counting": {"bootstrap_seed": -1}}, "counting.bootstrap_seed"),
        ({"counting": {"rs_limits_pct": [5, 150]}}, "counting.rs_limits_pct.1"),
        ({"counting": {"rs_limits_pct": [-3]}}, "counting.rs_limits_pct.0"),
        ({"counting": {"blast_limits_blood_pct": [0]}}, "counting.blast_limits_blood_pct.0"),
        ({"counting": {"rs_reader_errors": [-1, 0, 5, 0]}}, "counting.rs_reader_errors.0"),
        ({"counting": {"rs_reader_errors": [0, 0, 0, 0]}}, "rings and others that were read"),
        ({"counting": {"rs_reader_errors": [5, 45, 10, 90]}}, "no better than chance"),
    ],
)
def test_settings_that_no_case_could_be_run_with_are_refused(values: dict, said: str) -> None:
    with pytest.raises(BadInput) as error:
        load_settings(None, values)
    assert said in str(error.value)
    assert "''" not in str(error.value)


def test_an_unknown_key_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("registration: {max_shift: 3}\n")
    with pytest.raises(BadInput, match=r"registration\.max_shift"):
        load_settings(path)


def test_a_value_of_the_wrong_kind_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("counting: {level: 2}\n")
    with pytest.raises(BadInput, match=r"counting\.level"):
        load_settings(path)


@pytest.mark.parametrize("text", ["- a\n- b\n", "detection: [", "\x00"])
def test_a_file_that_is_no_settings_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"s\.yaml"):
        load_settings(path)


def test_the_example_of_the_documentation_loads(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    example = text.split("```yaml")[1].split("```")[0]
    path = tmp_path / "example.yaml"
    path.write_text(example)
    assert load_settings(path) != Settings()


def test_every_key_that_names_a_model_is_known_with_its_task() -> None:
    from storage.registry import available

    roles = ("detector", "stainer", "classifier", "segmenter", "reader", "model")
    named = {f"{section}.{key}" for section, key, _ in keys() if key.endswith(roles)}
    found = named_models(Settings())
    assert set(found) == named
    for task, name in found.values():
        assert name in available(task)
    off = load_settings(None, {"patients": {"model": None}})
    assert named - set(named_models(off)) == {"patients.model"}
