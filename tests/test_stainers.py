"""Promises of the stainers: what every registered one keeps, and how the small U-Net is built."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import BadInput, BadModelPackage
from storage.packages import find_package, write_package
from storage.registry import available, load
from tests.stainer_scenes import dic_patches

torch = pytest.importorskip("torch")


@pytest.fixture(params=available("stainer"))
def stainer(request):
    torch.set_num_threads(1)
    return load("stainer", request.param)


# contracts: every registered stainer, no names


def test_a_stainer_returns_what_the_protocol_says(stainer):
    from stainers.base import Stainer

    assert isinstance(stainer, Stainer)
    assert stainer.targets
    result = stainer.stain(dic_patches(2))
    assert result.image.shape == (2, 64, 64, 3)
    assert result.image.dtype == np.uint8
    assert result.uncertainty.shape == (2, 64, 64)
    assert result.uncertainty.dtype == np.float32
    assert (result.uncertainty >= 0).all()
    assert result.confidence.shape == (2,)
    assert ((result.confidence >= 0) & (result.confidence <= 1)).all()


def test_a_patch_is_stained_the_same_alone_and_among_others(stainer):
    patches = dic_patches(4)
    together = stainer.stain(patches)
    backwards = stainer.stain(patches[::-1].copy())
    for i in range(4):
        alone = stainer.stain(patches[i : i + 1])
        for other, j in ((together, i), (backwards, 3 - i)):
            np.testing.assert_array_equal(alone.image[0], other.image[j])
            np.testing.assert_array_equal(alone.uncertainty[0], other.uncertainty[j])
            assert alone.confidence[0] == other.confidence[j]


def test_an_unknown_target_is_refused_with_the_targets_that_exist(stainer):
    with pytest.raises(BadInput) as error:
        stainer.stain(dic_patches(1), "no-such-stain")
    assert all(t in str(error.value) for t in stainer.targets)


def test_every_target_gives_its_own_look(stainer):
    patch = dic_patches(1)
    looks = [stainer.stain(patch, t).image for t in stainer.targets]
    for i, a in enumerate(looks):
        for b in looks[i + 1 :]:
            assert np.abs(a.astype(int) - b.astype(int)).mean() > 1


def test_no_patches_give_no_results(stainer):
    result = stainer.stain(np.zeros((0, 64, 64, 1), np.uint8))
    assert len(result.image) == len(result.confidence) == len(result.uncertainty) == 0


@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (17, 33), (101, 64)])
def test_odd_and_tiny_patches_keep_their_size(stainer, shape):
    result = stainer.stain(np.full((1, *shape, 1), 120, np.uint8))
    assert result.image.shape == (1, *shape, 3)
    assert np.isfinite(result.uncertainty).all()
    assert np.isfinite(result.confidence).all()


@pytest.mark.parametrize("level", [0, 255])
def test_a_black_or_white_patch_does_not_break_a_stainer(stainer, level):
    result = stainer.stain(np.full((1, 64, 64, 1), level, np.uint8))
    assert np.isfinite(result.uncertainty).all()
    assert np.isfinite(result.confidence).all()


def test_grey_stored_as_rgb_is_stained_as_grey(stainer):
    patch = dic_patches(1)
    np.testing.assert_array_equal(stainer.stain(patch).image, stainer.stain(np.repeat(patch, 3, 3)).image)


def test_patches_of_another_shape_are_refused(stainer):
    with pytest.raises(BadInput, match="H, W"):
        stainer.stain(np.zeros((64, 64), np.uint8))


# the package


@pytest.fixture
def package():
    found = find_package("dic-to-mgg")
    if found is None:
        pytest.skip("the package dic-to-mgg is not installed")
    return found


def test_a_wrong_key_in_the_weights_is_refused(package, tmp_path):
    state = package.state_dict()
    state["generator.surprise"] = torch.zeros(1)
    altered = write_package(tmp_path / "altered", package.card.model_dump(exclude={"sha256"}), state)
    with pytest.raises(BadModelPackage, match="surprise"):
        load("stainer", str(altered.folder))


def test_a_missing_key_in_the_weights_is_refused(package, tmp_path):
    state = package.state_dict()
    gone = sorted(k for k in state if k.endswith("weight"))[0]
    del state[gone]
    altered = write_package(tmp_path / "altered", package.card.model_dump(exclude={"sha256"}), state)
    with pytest.raises(BadModelPackage, match=gone.replace(".", r"\.")):
        load("stainer", str(altered.folder))


def test_a_card_of_another_code_is_refused(package, tmp_path):
    shutil.copytree(package.folder, tmp_path / "p")
    card = json.loads((tmp_path / "p" / "card.json").read_text())
    card["parameters"]["confidence"]["features"][0] = "another"
    (tmp_path / "p" / "card.json").write_text(json.dumps(card))
    with pytest.raises(BadModelPackage, match="retrain"):
        load("stainer", str(tmp_path / "p"))


def test_the_card_says_that_its_figures_come_from_computed_dic(package):
    assert package.card.metrics["measured_on"] == "computed DIC"
    assert 0 < package.card.parameters["min_confidence"] < 1


# networks


def test_a_decoder_call_with_one_latent_serves_all_targets():
    from stainers.networks import Latent, build_generator

    torch.manual_seed(0)
    net = build_generator("unet-film", 3, widths=(4, 4, 8, 8), blocks=(1, 1, 1, 1)).eval()
    for film in net.film:
        torch.nn.init.normal_(film.linear.weight)
    x = torch.randn(1, 2, 32, 48)
    with torch.no_grad():
        latent = net.encode(x)
        wide = Latent(latent.code.expand(3, -1, -1, -1), tuple(s.expand(3, -1, -1, -1) for s in latent.skips))
        out = net.decode(wide, torch.arange(3))
    assert out.shape == (3, 4, 32, 48)
    assert not torch.allclose(out[0], out[1])


def test_an_unknown_architecture_is_refused_with_the_names():
    from stainers.networks import build_generator

    with pytest.raises(ValueError, match="unet-film"):
        build_generator("nothing", 3)


def test_what_is_far_away_does_not_change_a_pixel():
    """No statistics over the patch: beyond the receptive field nothing can reach a pixel."""
    from stainers.networks import build_generator

    torch.manual_seed(0)
    net = build_generator("unet-film", 1, widths=(4, 4, 4, 4), blocks=(0, 0, 0, 0)).eval()
    x = torch.randn(1, 2, 512, 32)
    y = x.clone()
    y[:, :, 448:] += 5
    with torch.no_grad():
        a, b = net(x, torch.tensor([0])), net(y, torch.tensor([0]))
    torch.testing.assert_close(a[:, :, :128], b[:, :, :128])
    assert (a[:, :, 448:] - b[:, :, 448:]).abs().max() > 1e-3


def test_the_polarity_network_is_odd_in_its_input():
    from stainers.networks import PolarityNet

    net, x = PolarityNet(), torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(net(x), -net(-x))


# DIC input


@pytest.mark.parametrize("angle", [0.0, 44.0, 46.0, 90.0, 179.0, 200.0, 271.0, 359.0])
def test_a_turn_brings_the_shear_between_0_and_45_degrees_and_back(angle):
    from stainers.dic_input import canonical_turn

    turn = canonical_turn(angle)
    assert -1e-6 <= (turn.angle(angle) + 1e-7) % 360 <= 45 + 1e-6
    image = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(turn.undo(turn.apply(image)), image)
    # the same turn on a picture: a ramp that grows along the angle grows along the new angle
    y, x = np.mgrid[:21, :21].astype(float)
    ramp = x * np.cos(np.deg2rad(angle)) + y * np.sin(np.deg2rad(angle))
    gy, gx = np.gradient(turn.apply(ramp))
    found = np.rad2deg(np.arctan2(gy.mean(), gx.mean()))
    assert abs((found - turn.angle(angle) + 180) % 360 - 180) < 1e-3


@pytest.mark.parametrize("angle", [10.0, 75.0, 160.0])
def test_the_axis_of_a_shear_is_found(angle):
    from stainers.dic_input import estimate_shear, measure_scale, normalise

    rng = np.random.default_rng(3)
    y, x = np.mgrid[:256, :256].astype(np.float32)
    path = np.zeros_like(x)
    for _ in range(14):
        cx, cy, r = rng.uniform(0, 256), rng.uniform(0, 256), rng.uniform(25, 45)
        path += np.sqrt(np.clip(1 - ((x - cx) ** 2 + (y - cy) ** 2) / r**2, 0, 1))
    gy, gx = np.gradient(path)
    a = np.deg2rad(angle)
    dic = 120 + 300 * (gx * np.cos(a) + gy * np.sin(a)) + rng.normal(0, 1, path.shape)
    found = estimate_shear(normalise(dic, measure_scale(dic)))
    assert abs((found.angle_deg - angle + 90) % 180 - 90) < 12


def test_integration_undoes_the_derivative():
    from stainers.dic_input import integrate

    y, x = np.mgrid[:128, :128].astype(np.float32)
    path = np.exp(-((x - 60) ** 2 + (y - 70) ** 2) / (2 * 9**2))
    gy, gx = np.gradient(path)
    back = integrate(0.8 * gx + 0.6 * gy, float(np.rad2deg(np.arctan2(0.6, 0.8))))
    near = (slice(40, 100), slice(30, 90))  # far from it, what no derivative along one direction tells
    assert np.corrcoef(back[near].ravel(), path[near].ravel())[0, 1] > 0.9
    assert np.unravel_index(back.argmax(), back.shape) == pytest.approx((70, 60), abs=2)


def test_brightness_and_contrast_of_the_camera_are_taken_out():
    from stainers.dic_input import measure_scale, normalise, to_grey

    grey = to_grey(dic_patches(1, 128)[0])
    other = 40 + 0.5 * grey
    a, b = (normalise(g, measure_scale(g)) for g in (grey, other))
    # glass at another level: relative contrast differs by a factor that the spread takes out
    np.testing.assert_allclose(a, b, atol=0.05)


# confidence


def test_which_way_up_does_not_depend_on_how_the_image_lies():
    """Quarter turns and mirror images are upright alike, and the negative is as surely not."""
    from stainers.networks import PolarityNet
    from stainers.polarity import upright_logit

    torch.manual_seed(0)
    net, rng = PolarityNet(), np.random.default_rng(1)
    for shape in ((64, 64), (48, 96), (8, 88)):
        path = rng.normal(0, 1, shape).cumsum(axis=1)
        found = upright_logit(net, path)
        for same in (path[::-1], np.rot90(path), np.rot90(path[:, ::-1], 3)):
            assert upright_logit(net, np.ascontiguousarray(same)) == pytest.approx(found, abs=1e-4)
        assert upright_logit(net, -path) == pytest.approx(-found, abs=1e-4)


@pytest.mark.parametrize("module", ["stainers.networks", "stainers.dic_input", "stainers.losses"])
def test_networks_need_torch_and_numpy_alone(module):
    path = Path(importlib.util.find_spec(module).origin)
    heavy = ("cv2", "skimage", "pandas", "scipy", "ultralytics", "onnxruntime")
    top = [line for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]
    assert not [line for line in top if any(f" {h}" in line for h in heavy)]
