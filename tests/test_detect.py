"""`smearflow detect`: what the file is decides how it is read, by whom, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner, Result

import detectors.painted
from detectors.scale import ScaleEstimate
from flows.cli import group
from phantoms.slides import write_pyramid
from pipeline.errors import UnknownName
from storage.images import to_uint8
from storage.whole_files import write_png
from tests.detector_scenes import smear


class Spy:
    """A detector that keeps what it was given."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def detect(self, image: np.ndarray, pixel_size_um: float) -> tuple[np.ndarray, np.ndarray]:
        self.seen.append(image)
        return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    found = Spy()
    monkeypatch.setattr(detectors.painted, "leukocyte_detector", lambda name, painted=True: found)
    return found


def relief(levels: tuple[int, int], bits: int = 16) -> np.ndarray:
    """DIC of a smear over a narrow part of the camera's range."""
    dark = 255.0 - smear((60, 60), [(30.0, 30.0)], 0.2)[0].mean(-1)
    slope = np.roll(dark, 2, 1) - np.roll(dark, -2, 1)
    low, high = levels
    return (low + (slope - slope.min()) / np.ptp(slope) * (high - low)).astype(
        np.uint16 if bits == 16 else "u1"
    )


def save(path: Path, image: np.ndarray, um: float = 0.2, **more: Any) -> Path:
    tifffile.imwrite(path, image, resolution=(1e4 / um, 1e4 / um), resolutionunit=3, **more)
    return path


def detect(*args: object) -> tuple[Result, list[dict[str, Any]]]:
    done = CliRunner().invoke(group, ["detect", *map(str, args), "--json"])
    return done, json.loads(done.stdout) if done.stdout else []


@pytest.mark.parametrize("levels", [(1900, 2300), (30_000, 31_500), (400, 1023)])
def test_a_16_bit_dic_is_read_as_a_run_reads_it(tmp_path: Path, spy: Spy, levels: tuple[int, int]) -> None:
    dic = relief(levels)
    (row,) = detect(save(tmp_path / "dic.tif", dic))[1]
    assert row["modality"] == "dic"
    np.testing.assert_array_equal(spy.seen[0], to_uint8(dic, modality="dic"))
    rgb = save(tmp_path / "rgb.tif", np.repeat(dic[..., None], 3, 2), photometric="rgb")
    assert detect(rgb)[1][0]["modality"] == "dic"
    np.testing.assert_array_equal(spy.seen[1], spy.seen[0])


def test_a_16_bit_brightfield_keeps_its_scale(tmp_path: Path, spy: Spy) -> None:
    image = smear((60, 60), [(30.0, 30.0)], 0.2)[0].astype(np.uint16) * 16
    (row,) = detect(save(tmp_path / "bf.tif", image, photometric="rgb"))[1]
    assert row["modality"] == "brightfield"
    np.testing.assert_array_equal(spy.seen[0], to_uint8(image))


def clipped_relief() -> np.ndarray:
    """Strong relief on a background of many levels, so that the cut flanks are the commonest one."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:400, :400]
    thick = sum(np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 300.0) for cx, cy in rng.uniform(20, 380, (60, 2)))
    slope = np.asarray(np.gradient(thick, axis=1)) * 1000
    bright = np.where(slope > 0, 8 * slope, slope)  # one flank reaches further, as of a bias of the prism
    return np.clip(bright + 100 + rng.normal(0, 32, (400, 400)), 0, 255).astype(np.uint8)


def test_dic_whose_flanks_are_cut_off_at_both_ends_is_dic(tmp_path: Path, spy: Spy) -> None:
    done, (row,) = detect(save(tmp_path / "dic.tif", clipped_relief()))
    assert row["modality"] == "dic"
    assert "taken for" not in done.stderr


def test_overexposed_glass_beside_a_black_bar_is_no_relief(tmp_path: Path, spy: Spy) -> None:
    cells = [(20.0 + 40 * (i % 5), 20.0 + 40 * (i // 5)) for i in range(25)]
    grey = np.minimum(smear((200, 200), cells, 0.2)[0].mean(-1) * 1.3, 255).astype(np.uint8)
    grey[180:190, 120:190] = 0
    (row,) = detect(save(tmp_path / "grey.tif", grey))[1]
    assert row["modality"] == "brightfield"


def test_a_modality_that_grey_levels_do_not_settle_is_said(tmp_path: Path, spy: Spy) -> None:
    stained = smear((60, 60), [(30.0, 30.0)], 0.2)[0].mean(-1)
    shaded = stained * np.linspace(0.6, 1.0, stained.shape[1])
    tinted = np.stack([shaded, shaded * 0.85, shaded * 0.6], -1).astype(np.uint8)
    path = save(tmp_path / "sepia.tif", tinted, photometric="rgb")
    done, (row,) = detect(path)
    assert f"taken for {row['modality']} by its grey levels" in done.stderr
    assert "taken for" not in detect(path, "--modality", "brightfield")[0].stderr
    coloured = save(tmp_path / "bf.tif", smear((60, 60), [(30.0, 30.0)], 0.2)[0], photometric="rgb")
    assert "taken for" not in detect(coloured)[0].stderr


def test_a_scale_on_which_few_cells_agree_is_said_to_be_unsure(
    tmp_path: Path, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "page.png"
    write_png(path, smear((60, 60), [(30.0, 30.0)], 0.2)[0])
    for confidence, said in ((0.1, True), (0.9, False)):
        found = ScaleEstimate(0.2, confidence, 6, "6 red cells of 7.5 µm")
        monkeypatch.setattr("detectors.scale.infer_pixel_size_um", lambda *_, found=found: found)
        done = detect(path, "--modality", "brightfield")[0]
        assert "0.200 µm a pixel inferred (6 red cells of 7.5 µm)" in done.stderr
        assert ("few cells agree" in done.stderr) is said


def test_an_underexposed_image_is_brightened_and_said(tmp_path: Path, spy: Spy) -> None:
    image = (smear((60, 60), [(30.0, 30.0)], 0.2)[0] * 0.2).astype(np.uint8)
    done = detect(save(tmp_path / "dark.tif", image, photometric="rgb"), "--modality", "brightfield")[0]
    assert "underexposed" in done.stderr
    assert np.percentile(spy.seen[0], 99.9) == 240
    dic = save(tmp_path / "dic.tif", image[..., 0])
    assert "underexposed" not in detect(dic, "--modality", "dic")[0].stderr


@pytest.mark.parametrize(
    ("image", "model", "said"),
    [("dic", "leukocyte-brightfield", "brightfield"), ("stained", "leukocyte-dic", "dic")],
)
def test_a_model_of_the_other_modality_is_refused(
    tmp_path: Path, spy: Spy, image: str, model: str, said: str
) -> None:
    pixels = relief((20, 220), 8) if image == "dic" else smear((60, 60), [(30.0, 30.0)], 0.2)[0]
    path = save(tmp_path / "x.tif", pixels, photometric="minisblack" if image == "dic" else "rgb")
    done, rows = detect(path, "--model", model)
    assert (done.exit_code, rows) == (2, [])
    assert len(done.stderr.strip().splitlines()) == 1
    assert "x.tif" in done.stderr
    assert f"--modality {said}" in done.stderr
    assert spy.seen == []
    done, rows = detect(path, "--model", model, "--modality", said)
    assert (done.exit_code, rows[0]["modality"]) == (0, said)


def test_what_the_reader_knows_of_a_file_is_said_on_stderr(tmp_path: Path, spy: Spy) -> None:
    image = smear((60, 60), [(30.0, 30.0)], 0.2)[0]
    turned = save(tmp_path / "turned.tif", image, photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    done, rows = detect(turned)
    assert len(rows) == 1
    assert "turned.tif: its orientation tag is not applied" in done.stderr


@pytest.mark.parametrize("said_um", [0.1, 0.6])
def test_a_pixel_size_that_the_red_cells_contradict_is_said_with_the_one_they_speak_for(
    tmp_path: Path, said_um: float
) -> None:
    image = smear((90, 90), [(20.0, 22.0), (62.0, 30.0)], 0.2)[0]
    wrong, right = save(tmp_path / "wrong.tif", image, said_um, photometric="rgb"), tmp_path / "right.tif"
    done, (row,) = detect(wrong)
    assert done.exit_code == 0
    assert row["inferred_pixel_size_um"] == pytest.approx(0.2, rel=0.15)
    assert row["pixel_size_um"] == pytest.approx(said_um, rel=0.01), (
        "what the file states is used all the same"
    )
    assert "wrong.tif" in done.stderr
    assert f"{said_um:g} µm" in done.stderr
    done, (row,) = detect(save(right, image, photometric="rgb"))
    assert row["inferred_pixel_size_um"] is None
    assert done.stderr == ""


def test_a_grey_image_without_relief_is_dic_where_a_model_for_dic_is_named(tmp_path: Path, spy: Spy) -> None:
    """Whether a grey image is DIC is a guess; an out-of-focus one has hardly any relief."""
    grey = smear((60, 60), [(30.0, 30.0)], 0.2)[0].mean(-1).astype(np.uint8)
    path = save(tmp_path / "soft.tif", grey)
    assert detect(path)[1][0]["modality"] == "brightfield"
    done, rows = detect(path, "--model", "leukocyte-dic")
    assert (done.exit_code, rows[0]["modality"]) == (0, "dic")


def test_an_unknown_model_is_said_once_and_no_image_is_blamed(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.full((40, 40, 3), 230, np.uint8), photometric="rgb")
    done = CliRunner().invoke(group, ["detect", str(path), str(path), "--model", "no-such", "--json"])
    assert isinstance(done.exception, UnknownName)
    assert str(done.exception).startswith("detector 'no-such' is not known")
    assert done.stdout == ""


class Windows(Spy):
    """A detector that reads an image in windows of 256 px, wherever that comes from."""

    def in_windows(self, window_px: int) -> Windows:
        return self

    def detect(self, image: np.ndarray, pixel_size_um: float) -> tuple[np.ndarray, np.ndarray]:
        assert not isinstance(image, np.ndarray), "the whole slide was read at once"
        height, width = image.shape[:2]
        self.um = pixel_size_um
        for y in range(0, height, 256):
            for x in range(0, width, 256):
                self.seen.append(image[y : y + 256, x : x + 256])
        return np.array([[1.0, 2.0, 3.0, 4.0]], np.float32), np.array([0.9], np.float32)


def test_a_whole_slide_is_looked_at_window_by_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Windows()
    monkeypatch.setattr(detectors.painted, "leukocyte_detector", lambda name, painted=True: found)
    image = np.random.default_rng(1).integers(0, 255, (500, 620, 3), np.uint8)
    svs = write_pyramid(tmp_path / "a.svs", image, 0.5, 2)
    done, (answer,) = detect(svs)
    assert (answer["pixel_size_um"], answer["pixel_size_source"], found.um) == (0.5, "file", 0.5)
    assert answer["boxes"] == [[1, 2, 3, 4]]
    assert "a.svs: a whole slide of 620 x 500 pixels, looked at window by window." in done.stderr
    assert [s.shape for s in found.seen[:3]] == [(256, 256, 3), (256, 256, 3), (256, 108, 3)]
    np.testing.assert_array_equal(np.hstack(found.seen[3:]), image[256:])
    assert detect(svs, "--pixel-size", 0.4)[1][0]["pixel_size_source"] == "command line"
    done, answers = detect(svs, "--modality", "dic")
    assert (done.exit_code, answers) == (2, [])
    assert "a whole slide is read as stained brightfield only" in done.stderr


def test_a_large_image_that_is_no_slide_is_taken_up_to_the_limit_of_the_settings(
    tmp_path: Path, spy: Spy
) -> None:
    path = save(tmp_path / "a.tif", np.tile(np.arange(120, 240, dtype=np.uint8)[:, None], (90, 1, 3)))
    (tmp_path / "small.yaml").write_text("intake: {max_image_pixels: 10000}")
    done, _ = detect(path, "--config", tmp_path / "small.yaml")
    assert done.exit_code == 2
    assert "has 120 x 90 pixels, more than the 10,000 allowed; cut it into fields or raise" in done.stderr
    assert detect(path)[0].exit_code == 0
