"""Promises of every stainer that can be trained, kept on a tiny one of each: no names in the contracts."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest

from pipeline.errors import BadInput
from stainers.cell_sets import Cells, StainSet
from stainers.families import FAMILIES, family
from tests.test_stainers_adversarial import cells

torch = pytest.importorskip("torch")


def tiny(recipe):
    """Any recipe with the smallest networks and two steps: what a part is called says how small it may be."""
    small = {
        "width": 2, "blocks": 1, "layers": 2, "crop_px": 32, "steps": 2, "batch": 2, "choose_every": 1,
        "sample_every": 2, "checkpoint_every": 2,
    }  # fmt: skip
    changed = {}
    for f in fields(recipe):
        value = getattr(recipe, f.name)
        if is_dataclass(value):
            changed[f.name] = tiny(value)
        elif f.name in ("widths", "blocks") and isinstance(value, tuple):
            changed[f.name] = (2,) * len(value) if f.name == "widths" else (1,) * len(value)
        elif f.name in small:
            changed[f.name] = small[f.name]
    return replace(recipe, **changed)


def from_sets(dic=False):
    return sorted(name for name, f in FAMILIES.items() if f.train_set and (dic or not f.only_dic))


@pytest.fixture(scope="module")
def stains():
    torch.set_num_threads(1)
    red, blue = cells("red", (200, 40, 60)), cells("blue", (40, 60, 200))
    return StainSet(red, replace(blue, images=tuple(i[..., ::-1].copy() for i in red.images)), paired=True)


@pytest.fixture(scope="module", params=from_sets())
def package(request, stains, tmp_path_factory):
    plan = family(request.param)
    recipe = tiny(replace(plan.get("recipe")(), architecture=request.param))
    folder = tmp_path_factory.mktemp(request.param)
    return plan.get("train_set")(stains, folder, recipe)


@pytest.fixture(scope="module")
def stainer(package):
    from storage.registry import load

    return load("stainer", str(package.folder))


def rgb_patches(n, height=40, width=40):
    rng = np.random.default_rng(5)
    base = np.stack([cells("x", (180, 60, 90), n=2, size=max(height, width)).images[i % 2] for i in range(n)])
    noisy = base[:, :height, :width].astype(int) + rng.integers(-9, 9, (n, height, width, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def test_a_trained_family_is_registered_and_its_package_says_what_it_is(package):
    from storage.registry import entries

    assert package.card.architecture in {e.architecture for e in entries("stainer")}
    assert package.card.training_data
    assert package.card.limits
    assert package.card.metrics
    assert 0 < package.card.parameters["min_confidence"] < 1


def test_a_patch_is_stained_the_same_alone_and_among_others(stainer):
    patches = rgb_patches(3)
    together = stainer.stain(patches)
    for i in range(3):
        alone = stainer.stain(patches[i : i + 1])
        np.testing.assert_array_equal(alone.image[0], together.image[i])
        np.testing.assert_array_equal(alone.uncertainty[0], together.uncertainty[i])
        assert alone.confidence[0] == together.confidence[i]
    assert together.image.dtype == np.uint8
    assert ((together.confidence >= 0) & (together.confidence <= 1)).all()
    assert (together.uncertainty >= 0).all()


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 50, 3), (33, 17, 1)])
@pytest.mark.parametrize("level", [0, 120, 255])
def test_patches_without_content_of_any_size_keep_their_size_and_give_numbers(stainer, shape, level):
    result = stainer.stain(np.full((1, *shape), level, np.uint8))
    assert result.image.shape == (1, *shape[:2], 3)
    assert np.isfinite(result.uncertainty).all()
    assert np.isfinite(result.confidence).all()


def test_an_unknown_target_and_another_shape_are_refused(stainer):
    with pytest.raises(BadInput, match=stainer.targets[0]):
        stainer.stain(rgb_patches(1), "no-such-stain")
    with pytest.raises(BadInput, match="H, W"):
        stainer.stain(np.zeros((64, 64), np.uint8))


def test_a_field_has_no_seams_at_its_tiles_borders(stainer):
    """In tiles or as one tile: the same image, within rounding of the blend."""
    from stainers.field import stain_field

    field = rgb_patches(1, 150, 190)[0]
    tiled, doubt, _ = stain_field(stainer, field, tile_px=96, overlap_px=24)
    whole, _, _ = stain_field(stainer, field, tile_px=512, overlap_px=24)
    assert tiled.shape == field.shape
    assert doubt.shape == field.shape[:2]
    assert np.abs(tiled.astype(int) - whole).mean() < 1.0


@pytest.mark.parametrize("name", from_sets())
def test_the_same_seed_gives_the_same_weights(name, stains, tmp_path):
    plan = family(name)
    recipe = tiny(replace(plan.get("recipe")(), architecture=name))
    made = [plan.get("train_set")(stains, tmp_path / part, recipe) for part in ("a", "b")]
    first, second = (m.state_dict() for m in made)
    assert all(torch.equal(first[k], second[k]) for k in first)


# what single families promise


def test_pairs_and_classes_are_demanded_where_they_are_needed(stains, tmp_path):
    from stainers.pix2pixhd import Pix2PixHdRecipe, train

    with pytest.raises(BadInput, match="pairs"):
        train(StainSet(stains.source, stains.target), tmp_path, Pix2PixHdRecipe())
    nameless = replace(stains.source, labels=("",) * len(stains.source))
    with pytest.raises(BadInput, match="classes"):
        train(StainSet(nameless, replace(nameless), paired=True), tmp_path, Pix2PixHdRecipe())


def test_the_class_head_learns_what_cells_are(stains):
    from stainers.cell_sets import Sampler
    from stainers.gan_training import to_batch
    from stainers.pix2pixhd import Pix2PixHdRecipe, Pix2PixHdRun

    base = Pix2PixHdRecipe()
    recipe = tiny(replace(base, run=replace(base.run, learning_rate=3e-3)))
    recipe = replace(recipe, discriminator=replace(recipe.discriminator, width=8, scales=1))
    run = Pix2PixHdRun(recipe, (3, 3), 2, 40, torch.device("cpu"))
    sampler = Sampler(stains.part("train"), recipe.draw, 0)
    losses = [run.train_step(to_batch(sampler.batch(i, 4), run.device))["judge_classes"] for i in range(40)]
    assert np.mean(losses[-6:]) < 0.6 * np.mean(losses[:6])


def test_colour_does_not_depend_on_the_brightness_of_a_grey_alone(stains):
    """The jitter of the grey is there, bounded, and the same for the same step."""
    from stainers.colorization import ColorizationRecipe, ColorizationRun

    run = ColorizationRun(tiny(ColorizationRecipe()), 2, torch.device("cpu"))
    grey = torch.full((4, 1, 8, 8), 0.5)
    a, b = run.jittered(grey), run.jittered(grey)
    torch.testing.assert_close(a, b)
    assert len({round(float(v), 4) for v in a[:, 0, 0, 0]}) == 4
    run.step = 1
    assert not torch.equal(a, run.jittered(grey))


def stained_field(first, second, amounts=(0.5, 0.35), glass=(245, 240, 235), seed=0):
    """(60, 80, 3) uint8 of two stains in known directions, where they lie apart and together."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:60, :80]
    one = ((x - 30) ** 2 + (y - 30) ** 2 < 400) * rng.uniform(0.6, 1, (60, 80)) * amounts[0]
    two = ((x - 50) ** 2 + (y - 30) ** 2 < 400) * rng.uniform(0.6, 1, (60, 80)) * amounts[1]
    density = one[..., None] * np.asarray(first) + two[..., None] * np.asarray(second)
    return np.clip(np.asarray(glass) * 10**-density, 0, 255).astype(np.uint8)


BLUE, RED = np.asarray([0.75, 0.55, 0.2]), np.asarray([0.15, 0.9, 0.4])


def test_macenko_finds_the_two_stains_of_an_image():
    from stainers.normalizers import macenko_measure

    found = macenko_measure(stained_field(BLUE, RED))
    np.testing.assert_allclose(found[:3], (245, 240, 235), atol=3)
    for wanted, got in zip((BLUE, RED), found[3:9].reshape(2, 3), strict=True):
        assert wanted @ got / np.linalg.norm(wanted) > 0.99
    assert np.isnan(macenko_measure(np.full((30, 30, 3), 240, np.uint8))[3:]).all()


@pytest.mark.parametrize(("method", "left"), [("macenko", 0.3), ("reinhard", 0.7)])
def test_a_normalizer_brings_another_stain_near_the_target(method, left):
    from stainers.normalizers import NormalizerStainer, fit

    mine = [stained_field(BLUE, RED, seed=i) for i in range(4)]
    theirs = [
        stained_field((0.6, 0.5, 0.5), (0.1, 0.5, 0.8), (0.8, 0.6), (240, 230, 170), seed=i) for i in range(4)
    ]
    stainer = NormalizerStainer(method, fit(method, theirs, mine), name="n", targets=("mine",))
    before = np.abs(theirs[0].astype(int) - mine[0]).mean()
    result = stainer.stain(theirs[0][None])
    assert np.abs(result.image[0].astype(int) - mine[0]).mean() < left * before
    assert result.confidence[0] > 0.5
    assert stainer.stain(255 - theirs[0][None]).confidence[0] < 0.5


def dic_smears():
    from stainers.data import Smear

    boxes = np.asarray([[70, 70, 130, 130]], np.float32)
    splits = ("train", "train", "validation", "validation", "test", "test")
    images = [np.tile(stained_field(BLUE, RED, seed=i), (4, 3, 1)) for i in range(len(splits))]
    return [
        Smear(f"s{i}", "bccd", split, image, boxes, boxes, (240.0, 240.0, 240.0), 0.2)
        for i, (split, image) in enumerate(zip(splits, images, strict=True))
    ]


@pytest.mark.parametrize("name", from_sets(dic=True))
def test_every_family_learns_to_stain_dic_from_the_same_set(name, tmp_path):
    from stainers.dic_sets import dic_set
    from stainers.networks import PolarityNet
    from storage.registry import load
    from tests.stainer_scenes import dic_patches

    data = dic_set(dic_smears(), "bccd", size_px=48)
    classes = ("a", "b") * 3
    data = replace(
        data, source=replace(data.source, labels=classes), target=replace(data.target, labels=classes)
    )
    plan = family(name)
    recipe = tiny(replace(plan.get("recipe")(), architecture=name))
    package = plan.get("train_set")(data, tmp_path, recipe, polarity=PolarityNet())
    assert package.card.modalities == ("dic",)
    stainer = load("stainer", str(package.folder))
    patches = dic_patches(2, 48)
    both = stainer.stain(patches)
    assert both.image.shape == (2, 48, 48, 3)
    np.testing.assert_array_equal(stainer.stain(patches[1:]).image[0], both.image[1])


def test_dic_sets_keep_pairs_turned_alike_and_in_their_smears_split():
    from stainers.dic_sets import dic_set

    smears = dic_smears()[1::2]
    found = dic_set(smears, "bccd", size_px=64)
    assert sorted(found.source.splits) == ["test", "train", "validation"]
    assert found.source.modality == "dic"
    assert {i.shape for i in found.source.images} == {(64, 64, 2)}
    assert len(found.pairs_of("test")) == 1
    for pair, target in zip(found.pairs, found.target.images, strict=True):
        assert np.sort(pair.stained.ravel()).tolist() == np.sort(target.ravel()).tolist()
    with pytest.raises(BadInput, match="raabin"):
        dic_set(smears, "raabin")
    assert isinstance(found.source, Cells)


def test_a_transfer_without_pairs_is_judged_by_a_classifier_before_and_after(tmp_path):
    import csv

    import cv2

    from stainers.label_evaluation import evaluate_transfer
    from stainers.normalizers import NormalizerStainer, fit

    mine = [stained_field(BLUE, RED, seed=i) for i in range(4)]
    theirs = [
        stained_field((0.6, 0.5, 0.5), (0.1, 0.5, 0.8), glass=(240, 230, 170), seed=i) for i in range(4)
    ]
    (tmp_path / "theirs").mkdir()
    with (tmp_path / "labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "source", "class"])
        for i, image in enumerate(theirs):
            cv2.imwrite(str(tmp_path / "theirs" / f"{i}.png"), image[..., ::-1])
            writer.writerow([f"theirs/{i}.png", "theirs", "red" if i == 3 else "blue"])
    stainer = NormalizerStainer("macenko", fit("macenko", theirs, mine), name="n", targets=("mine",))

    def classify(images):  # knows its own glass alone
        return ["blue" if i[0, 0, 2] > 200 else "nothing" for i in images]

    found = evaluate_transfer(stainer, tmp_path, tmp_path, classify=classify)["per_source"]["theirs"]
    assert found["n"] == 4
    assert found["right_before"][0] == 0
    assert found["gain"][0] == 0.75
    assert {c: (row["n"], row["gain"][0]) for c, row in found["per_class"].items()} == {
        "blue": (3, 1),
        "red": (1, 0),
    }
    assert (tmp_path / "pictures.png").is_file()
    untaught = evaluate_transfer(
        stainer, tmp_path, tmp_path, classify=classify, expects=lambda c: None if c == "red" else c
    )["per_source"]["theirs"]
    assert (untaught["n"], untaught["n_not_judged"], untaught["gain"][0]) == (4, 1, 1)
    assert untaught["per_class"]["red"]["n_not_judged"] == 1
    own = NormalizerStainer("macenko", stainer.fitted, name="n", targets=("theirs",))
    with pytest.raises(BadInput, match="own target"):
        evaluate_transfer(own, tmp_path, tmp_path, classify=classify)


def test_a_set_of_dic_without_a_test_part_is_refused_with_its_folder(tmp_path):
    from stainers.dic_sets import dic_set
    from stainers.picture_data import DataOptions, check_parts

    smears = dic_smears()
    check_parts(dic_set(smears, "bccd", size_px=48), tmp_path, DataOptions(kind="computed-dic"))
    untested = dic_set(smears[:4], "bccd", size_px=48)
    with pytest.raises(BadInput, match=rf"{tmp_path}: of its 4 .* test part, which takes 12 % .* give 37 or"):
        check_parts(untested, tmp_path, DataOptions(kind="computed-dic"))


@pytest.mark.parametrize("kind", ["computed-dic", "domains"])
def test_a_set_without_a_validation_part_is_refused_with_numbers_before_anything_is_trained(
    kind, tmp_path, monkeypatch
):
    from stainers.families import train_by_recipe
    from tests.stainer_scenes import smear_folder
    from tests.test_storage_tables import write_cells

    monkeypatch.setattr("stainers.polarity.train_polarity", lambda *_: pytest.fail("trained already"))
    recipe = tmp_path / "own.yaml"
    if kind == "domains":
        folder, target = write_cells(tmp_path / "few", 1), "theirs"
        recipe.write_text("architecture: cyclegan\ndata: {source: mine, target: theirs}\n")
    else:
        folder, target = smear_folder(tmp_path / "few", 2), "bccd"
        recipe.write_text(
            "architecture: pix2pixhd-ac\ndata: {kind: computed-dic, target: bccd, size_px: 64}\n"
        )
    said = (
        rf"few: of its \d different images of '{target}' none falls to the validation part, which takes 8 %"
    )
    with pytest.raises(BadInput, match=rf"{said} .*; give 56 or more\.$"):
        train_by_recipe(folder, tmp_path / "out", recipe)
