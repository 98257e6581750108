"""Training: mechanics on tiny drawn cells; packages load strictly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from classifiers.augment import Augmentation, augment
from classifiers.calibration import confidence_threshold, patch_of
from classifiers.cell_set import cell_set
from classifiers.evaluation import evaluate_classifier
from classifiers.locating import cached, train_locator, views
from classifiers.networks import BACKBONES, CellNet, Familiarity, Locator
from classifiers.recipes import RECIPES, Recipe
from classifiers.sources import (
    Sample,
    canonical,
    read_samples,
)
from classifiers.timm_classifier import TimmClassifier, load_strictly, packed_state
from classifiers.training import fit, train_classifier
from classifiers.views import crop_square, dihedral, reflected
from flows.naming import known_classes
from pipeline.errors import BadInput, BadModelPackage, UnreadableImage
from pipeline.settings import Settings
from storage.packages import read_package
from tests.class_folders import class_folders

TINY = Recipe(input_px=32, cached_px=48, epochs=2, batch=4, samples_per_epoch=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return class_folders(tmp_path_factory.mktemp("cells"))


def test_two_steps_end_in_a_package_that_loads(folder, tmp_path):
    out = train_classifier(folder, tmp_path / "tiny", TINY, epochs=1, holdout=0.3)
    package = read_package(out)
    package.verify()
    classifier = TimmClassifier.from_package(package)
    found = evaluate_classifier(classifier, folder, tmp_path / "evaluation")
    assert found["all"]["n"] == 12
    assert (tmp_path / "evaluation" / "confusion.png").is_file()
    assert package.card.training["holdout"] == 0.3
    assert package.card.metrics["all"]["n"] == 4


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(folder, tmp_path):
    cells = cell_set(read_samples(folder), TINY)

    def network():
        torch.manual_seed(0)
        return CellNet(TINY.backbone, 8, locator=False, none_output=True, drop_rate=0.2)

    whole = fit(network(), cells, TINY, seed=3)
    checkpoint = tmp_path / "c.pt"
    fit(network(), cells, TINY, seed=3, checkpoint=checkpoint, stop_after=1)
    resumed = fit(network(), cells, TINY, seed=3, checkpoint=checkpoint, resume=True)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_a_training_goes_on_with_its_own_data_start_and_recipe_alone(folder, tmp_path):
    samples, started = read_samples(folder), tmp_path / "net"
    train_classifier(samples, started, TINY, holdout=0.3, stop_after=1)
    again = {"holdout": 0.3, "resume": True}
    with pytest.raises(BadInput, match="other images, labels"):
        train_classifier(samples[:-2], started, TINY, **again)
    with pytest.raises(BadInput, match="other starting weights"):
        train_classifier(samples, started, TINY, start=started, **again)
    with pytest.raises(BadInput, match="another recipe or other settings"):
        train_classifier(samples, started, replace(TINY, learning_rate=1e-4), **again)
    train_classifier(samples, started, TINY, **again)


def test_the_focal_loss_trains_too(folder):
    cells = cell_set(read_samples(folder), TINY)
    net = CellNet(TINY.backbone, 8, locator=False, none_output=True)
    before = net.network.get_classifier().weight.clone()
    fit(net, cells, replace(TINY, loss="focal", epochs=1), seed=0)
    assert not torch.equal(before, net.network.get_classifier().weight)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_that_is_shipped_is_valid(path):
    assert Recipe.load(path).input_px >= BACKBONES[Recipe.load(path).backbone]


def test_a_recipe_with_an_unknown_key_is_refused_with_it(tmp_path):
    (tmp_path / "r.yaml").write_text("epoch: 3\n")
    with pytest.raises(BadInput, match="epoch"):
        Recipe.load(tmp_path / "r.yaml")
    with pytest.raises(BadInput, match="leukocytes"):
        Recipe.load("no-such-recipe")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("network.bn1.weight"), "missing"),
        (lambda s: s.update(extra=torch.zeros(1)), "no place"),
        (lambda s: s.update({"network.bn1.weight": torch.zeros(3)}), "needed is"),
        (lambda s: s.update({"network.bn1.weight": torch.zeros(32, dtype=torch.int64)}), "int64"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, message):
    net = CellNet("resnet18_slim", 8)
    state = dict(packed_state(net))
    change(state)
    with pytest.raises(BadModelPackage, match=message):
        load_strictly(net, state, "package")


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34", "resnext50_32x4d", "inception_resnet_v2"])
def test_the_architectures_of_the_papers_are_built(backbone):
    with torch.device("meta"):
        net = CellNet(backbone, 8, none_output=True)
    assert net.network.get_classifier().weight.shape[0] == 9


def test_a_float16_package_gives_the_network_that_was_measured():
    torch.manual_seed(0)
    net = CellNet("resnet18_slim", 8).eval()
    state = packed_state(net)
    first, second = CellNet("resnet18_slim", 8).eval(), CellNet("resnet18_slim", 8).eval()
    load_strictly(first, state, "a")
    load_strictly(second, packed_state(first), "b")
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(first(x), second(x))


def test_augmentation_keeps_shape_and_range_and_is_reproducible():
    images = torch.rand(3, 3, 40, 40)
    view = torch.full((3,), 0.7)
    one, two = (augment(images, 24, view, Augmentation(), torch.Generator().manual_seed(5)) for _ in range(2))
    assert one.shape == (3, 3, 24, 24)
    assert torch.equal(one, two)
    assert one.min() >= 0
    assert one.max() <= 1


def test_no_augmentation_is_the_plain_view():
    images = torch.rand(1, 3, 32, 32)
    plain = augment(images, 32, torch.ones(1), Augmentation.none(), torch.Generator())
    assert torch.allclose(plain, images, atol=1e-5)


def test_without_flips_no_view_is_mirrored():
    image = torch.zeros(1, 3, 32, 32)
    image[:, :, 4:12, 4:8], image[:, :, 4:8, 4:16] = 1, 1  # an L, which no rotation turns into its mirror
    strength = replace(Augmentation.none(), rotation=False, flips=False)
    views = augment(image.expand(20, -1, -1, -1), 32, torch.ones(20), strength, torch.Generator())
    assert torch.allclose(views, image.expand(20, -1, -1, -1), atol=1e-5)


def test_class_names_of_any_dialect_are_read():
    assert canonical("Neutrophils") == "neutrophil"
    assert canonical("ig") == "immature_granulocyte"
    assert canonical("MYB") == "myelocyte"
    with pytest.raises(BadInput):
        canonical("dragon")


def test_a_table_without_its_columns_is_refused(tmp_path):
    (tmp_path / "labels.csv").write_text("file,kind\na.png,x\n")
    with pytest.raises(BadInput, match="class"):
        read_samples(tmp_path)


def test_a_broken_image_is_named(tmp_path):
    (tmp_path / "monocyte").mkdir()
    (tmp_path / "monocyte" / "bad.png").write_bytes(b"\x89PNG no")
    with pytest.raises(UnreadableImage, match=r"bad\.png"):
        cell_set(read_samples(tmp_path), TINY)


def test_mirrored_indices_reach_any_distance():
    assert reflected(-2, 7, 3).tolist() == [1, 0, 0, 1, 2, 2, 1]


def test_a_crop_of_the_image_itself_is_the_image():
    image = np.random.default_rng(0).integers(0, 255, (20, 20, 3), np.uint8)
    crop = crop_square(image, 10, 10, 20, 20)
    assert torch.equal((crop * 255).round().byte().permute(1, 2, 0), torch.from_numpy(image))


def test_symmetric_views_are_all_different():
    views = dihedral(torch.rand(3, 6, 6), 8)
    assert len({tuple(v.flatten().tolist()) for v in views}) == 8


def test_ood_rank_is_monotone_and_reaches_towards_one():
    familiarity = Familiarity(4, 2, components=2, ranks=5)
    familiarity.ranks.copy_(torch.tensor([0.0, 1, 2, 3, 4]))
    rank = familiarity.rank(torch.tensor([-1.0, 0.5, 2, 3.9, 5, 50]))
    assert (rank[1:] > rank[:-1]).all()
    assert rank[0] == 0
    assert 0.8 <= rank[-2] < rank[-1] <= 1


def test_a_locator_learns_from_boxes_and_its_targets_match_its_views(folder, tmp_path):
    y, x = np.mgrid[:120, :120]
    disc = np.where(np.hypot(x - 70, y - 50)[..., None] < 12, (90, 40, 120), (235, 230, 235)).astype(np.uint8)
    Image.fromarray(disc).save(tmp_path / "field.png")
    boxed = [Sample(tmp_path / "field.png", "lymphocyte", "drawn", 70.5, 50.5, 24.0)] * 12
    images, share = cached(boxed)
    view, truth = views(images, share, torch.Generator().manual_seed(0), None)
    assert view.shape == (12, 3, 64, 64)
    dark = (0.75 - view.min(1).values).clamp(min=0)
    centre = (torch.arange(64) + 0.5) / 64 - 0.5
    found_x = (dark.sum(1) * centre).sum(1) / dark.sum((1, 2))
    found_y = (dark.sum(2) * centre).sum(1) / dark.sum((1, 2))
    assert (found_x - truth[:, 0]).abs().max() < 0.03
    assert (found_y - truth[:, 1]).abs().max() < 0.03
    width = (dark > 0.1).any(1).float().mean(1)
    assert (width.log() - truth[:, 2]).abs().max() < 0.15
    assert isinstance(train_locator(boxed, steps=2, batch=2), Locator)
    with pytest.raises(BadInput, match="box"):
        train_locator(read_samples(folder), steps=1)


def test_a_cell_of_a_small_field_is_cut_out_and_a_crop_is_taken_whole():
    field = np.zeros((100, 100, 3), np.uint8)
    field[10:30, 70:90] = 255
    sample = Sample(Path("field.png"), "monocyte", "drawn", 80.0, 20.0, 20.0)
    patch = patch_of(sample, field)
    assert patch.shape == (44, 44, 3)
    assert patch[22, 22].tolist() == [255, 255, 255]
    assert patch_of(replace(sample, is_crop=True), field) is field


def test_the_confidence_of_doubt_is_where_half_of_the_cells_below_are_wrong():
    confidence = np.linspace(0.3, 1.0, 701)
    # Right by turns up to 0.72, always above it.
    right = np.where(confidence < 0.72, np.arange(701) % 2 == 0, True)
    assert confidence_threshold(confidence, right) == pytest.approx(0.72, abs=0.011)
    assert confidence_threshold(confidence, np.ones(701, bool)) == 0.5
    assert confidence_threshold(confidence[-5:], np.zeros(5, bool)) == 0.5


def test_training_goes_on_from_a_classifier_of_the_same_classes_and_no_other(folder, tmp_path):
    first = train_classifier(folder, tmp_path / "first", TINY, epochs=1, holdout=0.3)
    still = replace(TINY, learning_rate=1e-9, ema=0.0)
    samples = read_samples(folder)
    second = train_classifier(samples[:8], tmp_path / "second", still, start=first, held_out=samples[8:])
    card = read_package(second).card
    assert card.training["pretrained"]["sha256"] == read_package(first).card.sha256
    assert (card.metrics["all"]["n"], card.training["trained_cells"]) == (4, 8)
    assert card.training["holdout"] is None  # what was given is no share that could be drawn again
    before, after = (read_package(p).state_dict() for p in (first, second))
    head = next(k for k in before if k.startswith("network.fc") and k.endswith("weight"))
    np.testing.assert_allclose(after[head].float(), before[head].float(), atol=1e-3)  # its outputs, too
    with pytest.raises(BadInput, match="of the recipe's classes alone"):
        train_classifier(samples, tmp_path / "third", replace(TINY, level="top"), start=first)


def test_what_is_kept_is_the_mean_of_the_classifier_begun_from_and_the_one_trained(folder, tmp_path):
    samples = read_samples(folder)
    far = replace(TINY, learning_rate=0.05, ema=0.0)
    first = train_classifier(samples[:8], tmp_path / "first", TINY, epochs=1, held_out=samples[8:])
    parts = {}
    for share in (0.0, 0.25):
        recipe = replace(far, start_share=share)
        out = train_classifier(
            samples[:8], tmp_path / f"{share}", recipe, epochs=1, start=first, held_out=samples[8:], seed=3
        )
        parts[share] = read_package(out).state_dict()
    begun, trained, kept = read_package(first).state_dict(), parts[0.0], parts[0.25]
    weights = [k for k in begun if k.startswith("network.") and begun[k].ndim > 1]
    assert any((trained[k] - begun[k]).abs().max() > 0.02 for k in weights)  # it did move
    for k in weights:
        expected = 0.25 * begun[k].float() + 0.75 * trained[k].float()
        np.testing.assert_allclose(kept[k].float(), expected, atol=2e-3)  # stored in 16 bits


def test_classes_without_a_cell_are_said_marked_and_never_named(folder, tmp_path):
    samples, said = read_samples(folder), []
    samples += [replace(s, label="blast") for s in samples[:3]]
    out = train_classifier(samples, tmp_path / "two", TINY, epochs=1, holdout=0.3, report=said.append)
    package = read_package(out)
    untrained = {"basophil", "erythroblast", "immature_granulocyte", "monocyte", "neutrophil", "platelet"}
    assert set(package.card.parameters["untrained_classes"]) == untrained
    assert package.card.known_classes == ("eosinophil", "lymphocyte")
    cells = package.card.training["cells"]
    assert cells["left_out"] == {"blast": 3}
    assert cells["learned"].keys() == {"eosinophil", "lymphocyte"}
    assert sum(cells["learned"].values()) == package.card.training["trained_cells"]
    assert any("left out" in line and "blast 3" in line for line in said)
    assert any("no cell of basophil" in line for line in said)
    found = TimmClassifier.from_package(package).classify(np.full((1, 40, 40, 3), 120, np.uint8), None)
    told = [package.card.classes.index(c) for c in package.card.known_classes]
    assert found.probabilities[0, told].sum() == 1
    assert known_classes(Settings(classification={"classifier": str(out)}), []) == package.card.known_classes


def test_a_class_that_a_classifier_was_never_shown_can_be_learned_from_it(folder, tmp_path):
    samples = read_samples(folder)
    first = train_classifier(samples, tmp_path / "first", TINY, epochs=1, holdout=0.3)
    more = [replace(s, label="monocyte") if s.label == "eosinophil" else s for s in samples]
    out = train_classifier(more, tmp_path / "more", TINY, holdout=0.3, start=first)
    assert read_package(out).card.known_classes == ("lymphocyte", "monocyte")
    biases = read_package(out).state_dict()["network.fc.bias"]
    assert biases[read_package(out).card.classes.index("monocyte")].abs() < 10
    assert read_package(out).card.metrics["all"]["per_class"]["monocyte"]["n"] == 2


@pytest.mark.parametrize("labels", [("eosinophil", "blast"), ("blast", "plasma_cell")])
def test_a_training_of_fewer_than_two_classes_is_refused_with_what_was_found(folder, tmp_path, labels):
    of = dict(zip(("eosinophil", "lymphocyte"), labels, strict=True))
    samples = [replace(s, label=of[s.label]) for s in read_samples(folder)]
    with pytest.raises(
        BadInput, match=r"level 'eight': there are cells of .*\(left out: blast 6.*two classes"
    ):
        train_classifier(samples, tmp_path / "net", TINY)
    assert not list(tmp_path.iterdir())


def test_a_share_of_what_was_begun_from_asks_for_a_classifier_to_begin_from(folder, tmp_path):
    with pytest.raises(BadInput, match="start_share is of a classifier to go on from; name one"):
        train_classifier(folder, tmp_path / "none", replace(TINY, start_share=0.3), epochs=1, holdout=0.3)
    with pytest.raises(BadInput, match="'start_share' must be from 0 to below 1, not 1"):
        replace(TINY, start_share=1.0)
