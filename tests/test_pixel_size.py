"""One range of pixel sizes that an image of a smear can have, at intake and in all that looks at it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from classifiers.sideroblasts import check_patches
from detectors.perls_nuclei import measure_nuclei
from detectors.segment import segment_image
from pipeline.errors import BadInput
from pipeline.intake import read_case
from pipeline.settings import IntakeSettings, Settings
from storage.images import image_info
from storage.images_info import PIXEL_SIZE_UM, check_pixel_size
from storage.registry import load
from tests.case_folders import make_case, write_manifest

OUTSIDE = (0.0099, 2.01, 3.0)
IMAGE = np.full((64, 64, 3), 200, np.uint8)


@pytest.mark.parametrize("size", OUTSIDE)
def test_a_case_of_a_pixel_size_that_no_detector_works_at_is_refused_at_intake(
    size: float, tmp_path: Path
) -> None:
    folder = make_case(tmp_path / "C", 1, paired=False)
    with pytest.raises(BadInput, match=r"the case: a pixel size of .* cannot be right"):
        read_case(folder, IntakeSettings(), pixel_size_um=size)
    write_manifest(folder, f"s1,F1,brightfield,MGG,F1_BF.tif,{size}")
    with pytest.raises(BadInput, match=r"manifest\.csv.*: a pixel size of .* give micrometres, 0\.01 to 2\."):
        read_case(folder, IntakeSettings())


@pytest.mark.parametrize("size", OUTSIDE)
def test_detectors_segmenters_and_readers_of_iron_refuse_what_intake_refuses(size: float) -> None:
    for work in (
        lambda: load("detector", "classical").detect(IMAGE, size),
        lambda: load("detector", "leukocyte-brightfield").detect(IMAGE, size),
        lambda: segment_image(load("segmenter", "nucleus-cytoplasm"), IMAGE, size),
        lambda: measure_nuclei(IMAGE, size),
        lambda: check_patches(IMAGE[None], size),
        lambda: check_pixel_size("--pixel-size", size),
        lambda: Settings.model_validate({"intake": {"slide_pixel_size_um": size}}),
        lambda: Settings.model_validate({"patches": {"pixel_size_um": size}}),
    ):
        with pytest.raises(ValueError, match=r"cannot be right|than or equal to"):
            work()


@pytest.mark.parametrize("size", [*PIXEL_SIZE_UM, *OUTSIDE])
def test_a_files_pixel_size_counts_where_a_manifest_could_state_it(size: float, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, IMAGE, photometric="rgb", resolution=(1e4 / size, 1e4 / size), resolutionunit=3)
    expected = None if size in OUTSIDE else pytest.approx(size, rel=1e-6)
    assert image_info(path).pixel_size_um == expected
