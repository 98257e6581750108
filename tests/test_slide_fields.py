"""Which fields of a whole slide are read: on phantom smears with known regions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from flows.execute import up_to_date
from phantoms.slides import write_pyramid
from phantoms.smears import simulate_smear
from pipeline.cells import merge_cells
from pipeline.errors import BadInput
from pipeline.intake import read_case
from pipeline.intake_manifest import declare
from pipeline.settings import DetectionSettings, FieldPosition, IntakeSettings
from pipeline.slide_fields import Candidate, choose_fields, score_candidates
from pipeline.slide_picture import draw_choice
from pipeline.slide_positions import read_positions
from pipeline.smear_quality import NOTHING, SmearQuality, smear_quality
from pipeline.types import Detections
from storage.slide_grid import glass_colour
from storage.slides import SlideField, SlideReader

PLAN: Any = [["thick", "monolayer", "monolayer", "feathered"], ["defocus", "precipitate", "pen", "glass"]]
SMALL = IntakeSettings(
    field_width_px=220, field_height_px=160, slide_pixel_size_um=0.5, field_overlap_um=10, max_slide_fields=6
)


@pytest.fixture(scope="module")
def smear(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("smear") / "smear.svs"
    return path, simulate_smear(path, seed=4, plan=PLAN, block_width_px=480, block_height_px=360)


def _kind_at(truth: dict[str, Any], field: SlideField) -> str:
    x, y = field.x_px + field.width_px / 2, field.y_px + field.height_px / 2
    return next(
        str(r["kind"])
        for r in truth["regions"]
        if r["box"][0] <= x < r["box"][2] and r["box"][1] <= y < r["box"][3]
    )


def test_a_monolayer_scores_above_thick_feathered_and_every_nuisance(
    smear: tuple[Path, dict[str, Any]],
) -> None:
    path, truth = smear
    with SlideReader(path) as reader:
        glass = glass_colour(reader.thumbnail())
        blocks = []
        for r in truth["regions"]:
            x0, y0, x1, y1 = r["box"]
            blocks.append(Candidate(SlideField(x0, y0, x1 - x0, y1 - y0, x1 - x0, y1 - y0, 0.5, 1.0), 0.0))
        scored = score_candidates(reader, blocks, glass, 100)
    scores: dict[str, list[float]] = {}
    for region, candidate in zip(truth["regions"], scored, strict=True):
        assert candidate.score is not None
        scores.setdefault(region["kind"], []).append(candidate.score)
    worst = min(scores.pop("monolayer"))
    assert worst > 0.6
    assert {kind: max(v) for kind, v in scores.items() if max(v) > 0.5 * worst} == {}
    assert max(scores["glass"] + scores["pen"] + scores["defocus"]) < 0.1


def test_the_fields_that_are_read_lie_in_the_monolayer(smear: tuple[Path, dict[str, Any]]) -> None:
    path, truth = smear
    with SlideReader(path) as reader:
        chosen = choose_fields(reader, SMALL)
        stained = choose_fields(reader, SMALL.model_copy(update={"slide_field_choice": "stained area"}))
    assert len(chosen.fields) == 6
    assert {_kind_at(truth, f) for f in chosen.fields} == {"monolayer"}
    assert chosen.monolayer
    assert list(chosen.fields) == sorted(chosen.fields, key=lambda f: (f.y_px, f.x_px))
    assert "monolayer" not in {_kind_at(truth, f) for f in stained.fields}  # which is why it is not the rule


def test_a_slide_without_a_monolayer_is_read_where_it_is_best_and_that_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "T1"
    folder.mkdir()
    simulate_smear(
        folder / "s.svs",
        seed=2,
        plan=[["thick", "glass"]],
        block_width_px=300,
        block_height_px=300,
        n_leukocytes=0,
    )
    case = read_case(folder, SMALL)
    assert "NO_MONOLAYER" in {p.code for p in case.problems}
    assert not any(p.fatal_for_field for p in case.problems)
    assert 1 <= len(case.images) <= 6
    assert case.slide_choices[0].n_chosen == len(case.images)


@pytest.mark.parametrize(("slide_um", "field_um"), [(0.5, 0.5), (0.25, 0.25), (0.1, 0.25), (0.17, 0.25)])
def test_fields_have_the_same_physical_size_on_slides_of_any_objective(
    tmp_path: Path, slide_um: float, field_um: float
) -> None:
    rng = np.random.default_rng(1)
    side = round(170 / slide_um)
    image = np.full((side, side, 3), 230, np.uint8)
    for _ in range(200):  # discs of 7 µm
        x, y = rng.integers(0, side, 2)
        r = round(3.5 / slide_um)
        image[max(0, y - r) : y + r, max(0, x - r) : x + r] = (180, 140, 150)
    path = write_pyramid(tmp_path / "s.svs", image, slide_um, 2, downsample=3)
    settings = IntakeSettings(field_width_px=320, field_height_px=240, field_overlap_um=10, min_field_score=0)
    with SlideReader(path) as reader:
        fields = choose_fields(reader, settings).fields
    assert fields
    for f in fields:
        assert f.pixel_size_um == pytest.approx(field_um)
        assert f.width_px * slide_um == pytest.approx(f.out_width_px * field_um, rel=0.005)
        assert f.height_px * slide_um == pytest.approx(f.out_height_px * field_um, rel=0.005)
    if slide_um < 0.5:  # else the slide is smaller than a field
        assert {(f.out_width_px, f.out_height_px) for f in fields} == {(320, 240)}


@pytest.mark.parametrize("target_um", [0.5, 0.7, 1.25, 1.9, 2.6])
def test_a_level_with_a_fractional_downsample_is_read_at_its_place(tmp_path: Path, target_um: float) -> None:
    image = np.full((701, 1003, 3), 20, np.uint8)
    image[:, 602:] = 230  # a step at 301 µm
    path = tmp_path / "s.tif"
    import cv2

    options: dict[str, Any] = {
        "photometric": "rgb",
        "tile": (128, 128),
        "compression": "zlib",
        "metadata": None,
    }
    with tifffile.TiffWriter(path) as writer:
        writer.write(image, resolution=(20000, 20000), resolutionunit="CENTIMETER", **options)
        for w, h in ((401, 280), (143, 100)):  # 2.501 and 2.504; 7.01 and 7.01
            writer.write(cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA), subfiletype=1, **options)
    with SlideReader(path) as reader:
        found = reader.read_region_um(100, 50, 350, 200, target_um)
    row = found[found.shape[0] // 2, :, 0].astype(float)
    first = int(np.argmax(row > 125))
    at = (first - 1 + (125 - row[first - 1]) / (row[first] - row[first - 1]) + 0.5) * target_um
    assert at == pytest.approx(201.0, abs=0.35 + 0.15 * target_um)


def test_cells_on_the_borders_of_overlapping_fields_count_once(smear: tuple[Path, dict[str, Any]]) -> None:
    path, truth = smear
    folder = path.parent
    case = read_case(folder, SMALL.model_copy(update={"max_slide_fields": 500, "min_field_score": 0.0}))
    boxes = np.array(truth["leukocytes_xyxy"])
    detections, covered = [], np.zeros(len(boxes), bool)
    for image in case.images:
        region = image.region
        assert region is not None
        low = np.array([region.x_px, region.y_px])
        high = low + np.array([region.width_px, region.height_px])
        cut = np.concatenate([np.maximum(boxes[:, :2], low), np.minimum(boxes[:, 2:], high)], axis=1)
        seen = (cut[:, 2:] - cut[:, :2] > 4).all(axis=1)  # what a detector would still find of a cut cell
        covered |= seen
        detections.append(
            Detections(
                slide=image.slide,
                field=image.field,
                modality="brightfield",
                stain="MGG",
                detector="truth",
                boxes=tuple(tuple(b) for b in (cut[seen] - np.tile(low, 2)).tolist()),
                scores=(0.9,) * int(seen.sum()),
            )
        )
    cells = merge_cells(case.images, detections, {}, DetectionSettings())
    assert sum(len(d.boxes) for d in detections) > covered.sum()  # some lie in several fields
    assert len(cells) == covered.sum() > 10


def test_a_part_of_a_large_slide_is_looked_at_and_the_best_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = [
        Candidate(SlideField(100 * x, 100 * y, 110, 110, 110, 110, 0.5, 1.0), 0.002 * x)
        for y in range(40)
        for x in range(60)
    ]
    looked: list[tuple[int, int]] = []

    def fake(_: Any, field: SlideField, __: Any) -> SmearQuality:
        looked.append((field.x_px, field.y_px))
        good = 3000 <= field.x_px < 3600 and 1000 <= field.y_px < 3000
        return SmearQuality(0.4, 0.9 if good else 0.05, 0.8, 0.0, 0.1, 7000.0, 0.4)

    monkeypatch.setattr("pipeline.slide_fields.probe", fake)
    scored = score_candidates(None, candidates, np.zeros(3), 400)  # type: ignore[arg-type]
    assert len(looked) == len(set(looked)) <= 400
    assert sum((c.score or 0) > 0.5 for c in scored) > 100  # of 120


def test_a_person_s_fields_are_read_and_no_others(smear: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path, _ = smear
    csv = tmp_path / "fields.csv"
    csv.write_text("x_um;y_um\n10,5;20\n300;100\n300;100\n")
    positions = read_positions(csv)
    assert positions == (FieldPosition(x_um=10.5, y_um=20), FieldPosition(x_um=300, y_um=100))
    case = read_case(path.parent, SMALL.model_copy(update={"slide_fields": positions}))
    assert [(i.region.x_px, i.region.y_px) for i in case.images if i.region] == [(21, 40), (600, 200)]
    assert {(i.width_px, i.height_px) for i in case.images} == {(220, 160)}
    assert case.slide_choices[0].how == "by hand"
    assert case.problems[0].code == "STAIN_ASSUMED"
    assert len(case.problems) == 1


def test_a_case_folder_may_name_its_fields(smear: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder = tmp_path / "H1"
    folder.mkdir()
    (folder / "s.svs").symlink_to(smear[0])
    (folder / "manifest.csv").write_text("slide,field,modality,stain,file\nA,,brightfield,MGG,s.svs\n")
    (folder / "s.svs").unlink()
    (folder / "s.svs").write_bytes(smear[0].read_bytes())
    (folder / "slide_fields.csv").write_text("slide,x_px,y_px\nA,500,30\n")
    (source,) = declare(folder, SMALL).sources
    assert source.positions == (FieldPosition(slide="A", x_px=500, y_px=30),)
    (image,) = read_case(folder, SMALL).images
    assert image.region is not None
    assert (image.region.x_px, image.region.y_px) == (500, 30)
    (folder / "slide_fields.csv").write_text("slide,x_px,y_px\nB,500,30\n")
    with pytest.raises(BadInput, match="the slide 'B', which the case does not hold"):
        declare(folder, SMALL)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("x,y\n1,2\n", "its first line names the columns"),
        ("x_um,y_px\n1,2\n", "its first line names the columns"),
        ("x_um,y_um\n", "names 0 fields"),
        ("", "its first line names"),
        ("x_um,y_um\n1,a\n", "line 2: y_um is 'a'"),
        ("x_um,y_um\n1,-3\n", "line 2: y_um is '-3'"),
        ("x_um,y_um\n1\n", "line 2"),
    ],
)
def test_positions_that_cannot_be_meant_are_refused_by_line(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "f.csv"
    path.write_text(text)
    with pytest.raises(BadInput, match=what):
        read_positions(path)


def _case_of(folder: Path, slide: bytes | None, name: str = "s.svs") -> Path:
    folder.mkdir()
    if slide is not None:
        (folder / name).write_bytes(slide)
    return folder


def test_what_is_wrong_with_a_slide_is_told_before_anything_starts(
    smear: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """`up_to_date` is what the command line asks before it starts a server or a worker."""
    whole = smear[0].read_bytes()
    for name, data, settings, match in [
        ("C1", whole[:2000], {}, r"C1: no field can be used: .*s\.svs: the whole-slide file is damaged"),
        ("C2", b"nothing", {}, r"s\.svs: the whole-slide file is damaged"),
        ("C3", whole[: len(whole) // 3], {}, r"s\.svs: the whole-slide file is damaged"),
        (
            "C4",
            whole,
            {"intake": {"slide_fields": [{"x_px": 9e6, "y_px": 1}]}},
            r"lies outside the slide of 1920 x 720 px",
        ),
        ("C5", whole, {"intake": {"slide_fields": [{"slide": "B", "x_px": 9, "y_px": 1}]}}, r"the slide 'B'"),
    ]:
        with pytest.raises(BadInput, match=match):
            up_to_date(_case_of(tmp_path / name, data), str(tmp_path / "store"), settings)
    folder = tmp_path / "C6"
    folder.mkdir()
    write_pyramid(folder / "s.svs", np.full((600, 600, 3), 200, np.uint8), None, 1)
    with pytest.raises(BadInput, match=r"s\.svs: neither the manifest nor the file states the pixel size"):
        up_to_date(folder, str(tmp_path / "store"))


def test_the_picture_shows_scores_and_frames_and_nothing_of_the_label(tmp_path: Path) -> None:
    path = tmp_path / "s.svs"
    simulate_smear(
        path, seed=3, plan=[["monolayer", "glass"]], block_width_px=400, block_height_px=300, n_leukocytes=1
    )
    pages = tifffile.imread(path)
    label = np.zeros((150, 200, 3), np.uint8)
    label[:] = (255, 0, 255)  # a colour that is nowhere else
    text = "Aperio Image Library v1\r\n800x300 (256x256)|AppMag = 20|MPP = 0.5"
    options: dict[str, Any] = {"photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        writer.write(pages, tile=(256, 256), compression="zlib", description=text, **options)
        writer.write(pages[::4, ::4].copy(), rowsperstrip=75, **options)
        writer.write(label, description="Aperio\r\nlabel 200x150", subfiletype=1, rowsperstrip=150, **options)
        writer.write(label, description="Aperio\r\nmacro 200x150", subfiletype=9, rowsperstrip=150, **options)
    import openslide

    with openslide.OpenSlide(str(path)) as slide:
        assert set(slide.associated_images) >= {"label", "macro"}
    with SlideReader(path) as reader:
        chosen = choose_fields(reader, SMALL)
        picture = draw_choice(chosen, reader.width_px, reader.height_px)
    assert max(picture.shape[:2]) <= 1000
    assert picture.dtype == np.uint8
    magenta = (picture.astype(int) - (255, 0, 255)) ** 2
    assert magenta.sum(axis=-1).min() > 5000
    frames = (picture == (255, 150, 0)).all(axis=-1)
    assert frames[:, : picture.shape[1] // 2].any()
    assert not frames[:-30, 3 * picture.shape[1] // 4 :].any()
    assert (picture[: picture.shape[0] - 30, :, 0] < 80).any()  # viridis over the scored fields


def test_quality_does_not_hang_on_the_pixel_size_or_on_the_stain_s_strength() -> None:
    import cv2

    from phantoms.fields import NORMAL_BLOOD, FieldView, populate, render_field
    from phantoms.stains import DOMAINS, develop

    view = FieldView("F", 0, 0, 1000, 800)
    rng = np.random.default_rng(5)
    cells = populate([view], 0.25, rng, composition=NORMAL_BLOOD, n_leukocytes=2)
    layers = render_field(cells, view, 0.25, DOMAINS["B"])
    glass = np.array(DOMAINS["B"].background)
    found = []
    for strength in (0.7, 1.0, 1.3):
        image = develop(layers.density * strength, 0.25, DOMAINS["B"], np.random.default_rng(1))
        found.append(smear_quality(image, 0.25, glass).layer)
    half = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    found.append(smear_quality(half, 0.5, glass).layer)
    assert min(found) > 0.7
    assert max(found) - min(found) < 0.2
    assert smear_quality(np.full((200, 200, 3), 230, np.uint8), 0.5, glass) == NOTHING


@pytest.mark.real
def test_a_real_field_scores_above_the_same_field_out_of_focus(real_data: Path) -> None:
    import cv2

    from storage.images import read_image

    for name in ("S001/F001", "S002/F001", "S003/F001"):
        image = read_image(real_data / "cases" / f"{name}_BF.tif")
        glass = glass_colour(cv2.resize(image, None, fx=0.05, fy=0.05, interpolation=cv2.INTER_AREA))
        sharp = smear_quality(image, 0.1, glass)
        soft = smear_quality(cv2.GaussianBlur(image, (0, 0), 12), 0.1, glass)
        assert sharp.layer > 0.15
        assert soft.layer < 0.3 * sharp.layer


def test_the_report_shows_the_slide_with_its_fields_and_how_they_were_chosen() -> None:
    from pipeline.report_html import render_html
    from pipeline.report_slides import SlidePicture
    from pipeline.settings import CountingSettings, Settings
    from pipeline.types import SlideChoice
    from tests.report_cases import a_picture, a_result

    choice = SlideChoice(
        slide="<b>s1",
        file="s.svs",
        how="monolayer",
        n_candidates=812,
        n_scored=600,
        n_chosen=60,
        lowest_score=0.712,
        best_score=0.95,
        picture="k",
    )
    result = a_result(settings=Settings(counting=CountingSettings(bootstrap_draws=100)))
    page = render_html(result, {}, slides=[SlidePicture(choice, a_picture())])
    section = page.split("Where on the slide")[1].split("</figure>")[0]
    assert "data:image/jpeg" in section
    assert "60 fields of 812 with stained material" in section
    assert "0.71 to 0.95" in section
    assert "600 of them were looked at" in section
    assert "<b>s1" not in section
    assert "&lt;b&gt;s1" in section
    by_hand = choice.model_copy(update={"how": "by hand", "n_chosen": 1})
    page = render_html(result, {}, slides=[SlidePicture(by_hand, a_picture())])
    assert "1 field named by a person." in page
    assert "Where on the slide" not in render_html(result, {})


def test_the_command_line_takes_positions_and_refuses_what_is_none(
    smear: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    from flows.cli import main
    from flows.commands.run import field_positions

    csv = tmp_path / "f.csv"
    csv.write_text("x_px,y_px\n5,7\n")
    assert field_positions(csv) == [{"x_px": 5.0, "y_px": 7.0}]
    for text in ("x_px,y_px\n5\n", "x_px,y_px\n5,999999\n"):
        csv.write_text(text)
        with pytest.raises(SystemExit) as stopped:
            main(["run", str(smear[0].parent), "--store", str(tmp_path / "st"), "--fields", str(csv)])
        assert stopped.value.code == 2
