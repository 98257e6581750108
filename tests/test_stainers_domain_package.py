"""The multi-domain stainers as packages: what every stainer promises, and fields without seams, measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import BadInput, BadModelPackage, UnknownName
from tests.domain_scenes import domain_set
from tests.stainer_scenes import dic_image, dic_patches, smear_folder
from tests.test_stainers_disentangled import TinyOutline

torch = pytest.importorskip("torch")

SMALL = {
    "multidomain": {"width": 4, "blocks": 1, "judge_width": 4, "judge_layers": 2},
    "disentangled": {
        "width": 4, "blocks": 1, "style": 6, "structure": 3, "noise": 4, "hidden": 4, "judge_width": 4,
        "judge_layers": 2,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def smears(tmp_path_factory):
    from stainers.data import load_smears

    torch.set_num_threads(1)
    found = load_smears(smear_folder(tmp_path_factory.mktemp("smears"), 2))
    return [replace(s, split=("validation", "test")[i % 2]) for i, s in enumerate(found)]


@pytest.fixture(scope="module", params=sorted(SMALL))
def package(request, smears, tmp_path_factory):
    """Two steps of a tiny network of each family, through its export."""
    from stainers import domain_package
    from stainers.disentangled.objectives import FrozenSegmenter
    from stainers.domain_sets import DomainOptions, DomainSampler
    from stainers.domain_training import fit_domains
    from stainers.families import family
    from stainers.gan_training import RunOptions
    from storage.packages import read_package

    kind = family(request.param).get("recipe")
    base = kind()
    recipe = replace(
        base,
        generator=replace(base.generator, **SMALL[request.param]),
        data=DomainOptions(crop_px=16, context_px=24),
        run=RunOptions(steps=2, batch=4, choose_every=2, sample_every=2),
    )
    if request.param == "multidomain":
        recipe = replace(recipe, phases=replace(recipe.phases, critic_steps=2))
    patched = pytest.MonkeyPatch()
    patched.setattr(domain_package, "frozen_outline", lambda _: FrozenSegmenter(TinyOutline()))
    data, folder = domain_set(), tmp_path_factory.mktemp(request.param)
    run = domain_package.make_run(recipe, data)
    fit_domains(run, DomainSampler(data, recipe.data, 0), data, folder)
    domain_package.export(run, data, smears, folder, cells_per_domain=2)
    patched.undo()
    return read_package(folder / "package")


@pytest.fixture(scope="module")
def stainer(package):
    from storage.registry import load

    return load("stainer", str(package.folder))


def test_the_card_says_what_the_stainer_learned_from(package):
    card = package.card
    assert card.parameters["targets"] == ["barcelona", "bccd", "raabin"]
    assert card.training["checkpoint"] == "lowest error on held-out pairs"
    assert card.training["checkpoint_step"] == card.training["steps_done"] == 2
    assert card.metrics["measured_on"] == "computed DIC"
    assert "pairs" in card.training_data[0]
    assert card.training["pseudo_labels"]["by"] == ["leukocyte-classes", "nucleus-cytoplasm"]
    assert any("computed DIC alone" in limit for limit in card.limits)


def test_a_patch_is_stained_the_same_alone_and_among_others(stainer):
    patches = dic_patches(3)
    together = stainer.stain(patches, "raabin")
    for i in range(3):
        alone = stainer.stain(patches[i : i + 1], "raabin")
        np.testing.assert_array_equal(alone.image[0], together.image[i])
        np.testing.assert_array_equal(alone.uncertainty[0], together.uncertainty[i])
        assert alone.confidence[0] == together.confidence[i]
    assert ((together.confidence >= 0) & (together.confidence <= 1)).all()


@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (33, 17)])
def test_odd_and_tiny_patches_keep_their_size(stainer, shape):
    result = stainer.stain(np.full((1, *shape, 1), 120, np.uint8))
    assert result.image.shape == (1, *shape, 3)
    assert np.isfinite(result.uncertainty).all()
    assert np.isfinite(result.confidence).all()


def test_dic_is_no_target_and_an_unknown_one_is_refused(stainer):
    for target in ("dic", "perls"):
        with pytest.raises(BadInput, match="barcelona, bccd, raabin"):
            stainer.stain(dic_patches(1), target)


def test_every_target_gives_its_own_look(stainer):
    looks = [stainer.stain(dic_patches(1), t).image.astype(int) for t in stainer.targets]
    assert all((a != b).any() for i, a in enumerate(looks) for b in looks[i + 1 :])


def test_a_field_has_no_seams_at_its_tiles_borders(stainer):
    """Steps across tile borders are no larger than steps elsewhere."""
    from stainers.field import stain_field, tile_starts

    field = dic_image(170, 300, 12, 5)
    stained = stain_field(stainer, field, shear_angle_deg=20.0, tile_px=112, overlap_px=32)[0].astype(int)
    steps = np.abs(np.diff(stained, axis=1)).mean(axis=(0, 2))  # one figure a column
    starts = tile_starts(300, 112, 32)
    borders = [b for s in starts for b in (s - 1, s + 112 - 1) if 0 <= b < 299]
    assert steps[borders].mean() < 1.25 * np.median(steps) + 0.3


def shaken(package):
    """The package's network with large random weights: whatever could reach a pixel does."""
    from stainers.domain_package import network_of

    net = network_of(package.card.architecture)(package.card.parameters).eval()
    torch.manual_seed(0)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return net


def test_a_tile_with_its_surroundings_is_stained_as_in_the_whole(package):
    """The norms use no statistic of a tile: with enough context the seam is nothing but rounding."""
    net, target = shaken(package), torch.tensor([1])
    x = torch.rand(1, 2, 320, 32)
    with torch.no_grad():
        whole = net(x, target)
        part = net(x[:, :, 64:256], target)  # a start on the network's grid
    seam = (part[:, :, 88:104] - whole[:, :, 152:168]).abs().max()
    assert float(seam) < 1e-5
    assert whole.std() > 0.01


def test_what_is_far_away_does_not_change_a_pixel(package):
    net = shaken(package)
    x = torch.rand(1, 2, 320, 16)
    y = x.clone()
    y[:, :, 280:] = 1 - y[:, :, 280:]
    with torch.no_grad():
        a, b = net(x, torch.tensor([0])), net(y, torch.tensor([0]))
    torch.testing.assert_close(a[:, :, :96], b[:, :, :96], rtol=0, atol=1e-6)
    assert (a[:, :, 288:] - b[:, :, 288:]).abs().max() > 1e-4


def test_weights_of_another_family_are_refused(package, tmp_path):
    from storage.packages import write_package
    from storage.registry import load

    card = package.card.model_dump(exclude={"sha256"})
    card["parameters"]["generator"]["width"] = 6
    altered = write_package(tmp_path / "altered", card, package.state_dict())
    with pytest.raises(BadModelPackage, match="retrain"):
        load("stainer", str(altered.folder))


def test_the_recipes_on_the_shelf_are_read_as_their_family():
    from stainers.recipes import read_recipe

    for name in SMALL:
        recipe = read_recipe(name)
        assert recipe.architecture == name
        assert recipe.generator.domains[-1] == "dic"
        assert recipe.data.crop_px % 8 == 0


def test_the_structure_loss_looks_through_the_registered_segmenter():
    """The shipped segmenter passes gradients; one without a network is refused by name."""
    from stainers import domain_package
    from storage.packages import find_package

    if find_package(domain_package.SEGMENTER) is None:
        pytest.skip("the segmenter's package is not installed")
    outline = domain_package.frozen_outline(domain_package.SEGMENTER)
    picture = torch.rand(1, 3, 32, 32, requires_grad=True)
    logits = outline(picture)
    assert logits.shape == (1, 4, 16, 16)
    logits.sum().backward()
    assert picture.grad.abs().sum() > 0
    with pytest.raises(UnknownName, match="no-such-segmenter"):
        domain_package.frozen_outline("no-such-segmenter")
