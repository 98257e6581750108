"""`smearflow align`: whose pixel size is whose, what it says, and a picture that cannot be written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner, Result

from detectors.evaluation_pictures import draw_curve, draw_errors
from flows.cli import group
from pipeline.errors import BadInput
from storage.whole_files import write_png
from tests.registration_fields import grid_error, pair

DIC_SCALE = 0.6  # of the DIC camera's pixel grid


def save(path: Path, image: np.ndarray, um: float | None, **more: Any) -> Path:
    size = {} if um is None else {"resolution": (1e4 / um, 1e4 / um), "resolutionunit": 3}
    tifffile.imwrite(path, image, **size, **more)
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, np.ndarray]:
    """Brightfield of 0.2 µm a pixel, DIC of a camera with larger ones, and the matrix between them."""
    dic, brightfield, truth = pair(3, shift=(13.0, -7.0), dic_scale=DIC_SCALE)
    return (
        save(tmp_path / "bf.tif", brightfield, 0.2),
        save(tmp_path / "dic.tif", dic, 0.2 / DIC_SCALE),
        truth,
    )


def align(*args: object) -> tuple[Result, dict[str, Any]]:
    done = CliRunner().invoke(group, ["align", *map(str, args), "--json"])
    return done, json.loads(done.stdout) if done.stdout else {}


def test_the_pixel_sizes_of_both_files_are_used(files: tuple[Path, Path, np.ndarray]) -> None:
    brightfield, dic, truth = files
    done, found = align(brightfield, dic)
    assert done.exit_code == 0
    assert found["status"] == "ok", found["reason"]
    assert grid_error(found["matrix"], truth, 640, 480) < 0.2
    assert "dic.tif" in done.stderr, "sizes that differ are said"


def test_the_pixel_size_of_the_dic_can_be_given(files: tuple[Path, Path, np.ndarray], tmp_path: Path) -> None:
    brightfield, dic, truth = files
    untold = save(tmp_path / "untold.tif", tifffile.imread(dic), None)
    assert align(brightfield, untold)[1]["status"] == "failed"
    found = align(brightfield, untold, "--dic-pixel-size", 0.2 / DIC_SCALE)[1]
    assert grid_error(found["matrix"], truth, 640, 480) < 0.2


def test_one_pixel_size_on_the_line_is_that_of_both_images(tmp_path: Path) -> None:
    dic, brightfield, truth = pair(3, shift=(13.0, -7.0))
    wrong = save(tmp_path / "dic.tif", dic, 0.4)
    right = save(tmp_path / "bf.tif", brightfield, 0.2)
    assert align(right, wrong)[1]["status"] == "failed"
    found = align(right, wrong, "--pixel-size", 0.2)[1]
    assert grid_error(found["matrix"], truth, 640, 480) < 0.2
    assert found["residual_um"] == pytest.approx(0.2 * found["residual_px"])


def test_the_evidence_for_an_alignment_is_printed(files: tuple[Path, Path, np.ndarray]) -> None:
    found = align(*files[:2])[1]
    assert 0 <= found["forward_backward_px"] < 0.2
    assert 0 < found["expected_error_px"] < 1
    assert 0 <= found["p_false_accept"] < 1e-3


def test_what_the_reader_knows_of_a_file_is_said_on_stderr(
    files: tuple[Path, Path, np.ndarray], tmp_path: Path
) -> None:
    dic = tifffile.imread(files[1])
    turned = save(tmp_path / "turned.tif", dic, 0.2 / DIC_SCALE, extratags=[(274, 3, 1, 6, True)])
    done, found = align(files[0], turned)
    assert found["status"] == "ok"
    assert "turned.tif: its orientation tag is not applied" in done.stderr


def test_swapped_arguments_are_a_failed_alignment_that_says_so(files: tuple[Path, Path, np.ndarray]) -> None:
    done, found = align(files[1], files[0])
    assert (done.exit_code, found["status"], found["matrix"]) == (0, "failed", None)
    assert "swapped" in found["reason"]


@pytest.mark.parametrize("where", ["taken", "file"])
def test_a_picture_that_cannot_be_written_is_said_and_the_alignment_is_kept(
    files: tuple[Path, Path, np.ndarray], tmp_path: Path, where: str
) -> None:
    folder = tmp_path / "pictures"
    if where == "taken":
        (folder / "bf-alignment.png").mkdir(parents=True)
    else:
        folder.write_text("no folder")
    done, found = align(*files[:2], "--picture", folder)
    assert found["status"] == "ok"
    assert isinstance(done.exception, BadInput)
    assert "pictures" in str(done.exception)


def test_a_picture_is_written_with_its_colours(tmp_path: Path) -> None:
    import cv2

    image = np.zeros((20, 30, 3), np.uint8)
    image[..., 0] = 200
    write_png(tmp_path / "ü red.png", image)
    back = cv2.imdecode(np.fromfile(tmp_path / "ü red.png", np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(back, image)


def test_the_pictures_of_an_evaluation_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "errors.png").mkdir()
    with pytest.raises(BadInput, match=r"errors\.png"):
        draw_errors(tmp_path / "errors.png", [], [], [], [], [], 0.5)
    with pytest.raises(BadInput, match=r"errors\.png"):
        draw_curve(tmp_path / "errors.png", [], [], [], 0.5)
