"""Files are written whole or not at all, and a file that could not be written is said."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from flows.cli import group
from pipeline.errors import BadInput
from storage.tables import read_table, write_table
from storage.whole_files import write_json, write_png, write_text, write_whole

RGB = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)


@pytest.mark.parametrize("image", [RGB, RGB[..., 0], RGB.astype(np.uint16) * 200])
def test_a_picture_is_read_as_it_was_written(tmp_path: Path, image: np.ndarray) -> None:
    write_png(tmp_path / "a.png", image)
    found = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(found if image.ndim == 2 else found[..., ::-1], image)


def test_what_is_in_the_way_is_named_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(BadInput, match=r"a\.png: cannot be written \(Is a directory\)"):
        write_png(tmp_path / "a.png", RGB)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(BadInput, match="No such file or directory"):
        write_png(tmp_path / "gone" / "a.png", RGB)


def test_a_full_disk_keeps_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "a.png", b"old")

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(BadInput, match="No space left on device"):
        write_png(tmp_path / "a.png", RGB)
    assert (tmp_path / "a.png").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_link_is_replaced_by_the_picture_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("/dev/full")
    write_png(tmp_path / "a.png", RGB)
    assert cv2.imread(str(tmp_path / "a.png")).shape == RGB.shape
    assert not (tmp_path / "a.png").is_symlink()


@pytest.mark.parametrize(
    ("command", "written"), [("stain", "a_virtual.png"), ("segment", "a.png"), ("explain", "a.png")]
)
def test_a_command_that_could_not_write_its_picture_says_so_and_exits_with_2(
    tmp_path: Path, command: str, written: str
) -> None:
    image = np.random.default_rng(1).integers(90, 160, (96, 96, 3), np.uint8)
    write_png(tmp_path / "a.png", image)
    in_the_way = tmp_path / "out" / written
    in_the_way.mkdir(parents=True)
    done = CliRunner().invoke(
        group, [command, str(tmp_path / "a.png"), "--out", str(in_the_way.parent), "--json"]
    )
    assert done.exit_code == 2
    assert json.loads(done.stdout) == []
    assert f"{in_the_way}: cannot be written (Is a directory)" in done.stderr


def test_figures_tables_and_texts_are_whole_and_read_as_they_were_written(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"ap": float("nan"), "name": "Zürich"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"ap": None, "name": "Zürich"}
    rows = [{"image": "a,b.png", "class": "monocyte"}, {"image": "c.png"}]
    write_table(tmp_path / "a.csv", ("image", "class"), rows)
    assert read_table(tmp_path / "a.csv", ("image", "class")) == [rows[0], {"image": "c.png", "class": ""}]
    (tmp_path / "b.txt").mkdir()
    with pytest.raises(BadInput, match=r"b\.txt: cannot be written"):
        write_text(tmp_path / "b.txt", "")


def test_no_training_or_evaluation_writes_a_file_in_place() -> None:
    # Drafts that are moved, or thrown away, as a whole.  Rows are added to a table by storage.tables.
    others = {"detectors/compact.py", "detectors/export.py"}
    found = set()
    root = Path(__file__).resolve().parent.parent
    rooms = ("classifiers", "detectors", "stainers", "pipeline")
    for path in (p for room in rooms for p in (root / room).rglob("*.py")):
        for call in (n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Call)):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
            opened = name == "open" and any(ast.unparse(a) in ("'w'", "'a'", "'wb'") for a in call.args)
            if opened or name in ("write_text", "write_bytes", "imwrite", "save", "savefig"):
                found.add(path.relative_to(root).as_posix())
    assert found == others
