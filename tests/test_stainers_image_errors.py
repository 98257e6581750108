"""Errors and distances of stained images: what each knows of lamp, dye and structure; ImageNet weights."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import BadInput
from tests.stainer_scenes import FakeClassifier, dic_patches, stained_of

torch = pytest.importorskip("torch")


# errors


def test_lamp_and_stain_strength_are_in_the_raw_error_and_not_in_the_matched_one():
    from stainers.image_errors import image_errors

    real = stained_of(dic_patches(1)[0])
    lit = np.clip(real * np.asarray([0.9, 0.8, 0.95]), 0, 255).astype(np.uint8)
    found = image_errors(real, lit)
    assert found["rmse"] > 0.05
    assert found["rmse_balanced"] < 0.01
    assert found["rmse_matched"] < 0.005
    other = real[::-1]  # another structure in the same light is an error by every measure
    wrong = image_errors(real, other)
    assert wrong["rmse_matched"] > 0.01
    assert wrong["rmse_matched"] <= wrong["rmse"] + 1e-6
    assert image_errors(real, real)["rmse_matched"] < 1e-4


def test_an_image_without_contrast_or_turned_round_is_left_with_all_of_the_real_one_s():
    from stainers.image_errors import image_errors

    real = stained_of(dic_patches(1, 16)[0])
    contrast = pytest.approx((real.reshape(-1, 3).astype(float).var(0).mean() ** 0.5) / 255, rel=1e-4)
    flat = np.full((16, 16, 3), 90, np.uint8)
    faint = np.clip(90 + 0.02 * (real.astype(float)[::-1] - 90), 0, 255).astype(np.uint8)
    assert image_errors(flat, real)["rmse_matched"] == contrast
    assert image_errors(255 - real, real)["rmse_matched"] == contrast
    assert image_errors(faint, real)["rmse_matched"] > 0.5 * contrast.expected
    assert image_errors(flat, flat)["rmse_matched"] == 0


def test_the_structure_error_knows_neither_lamp_nor_dye_and_is_one_where_nothing_is_shown():
    from stainers.image_errors import image_errors

    y, x = np.mgrid[:64, :64]  # contrast enough to be halved
    real = np.repeat((128 + 80 * np.sin(x / 5) * np.cos(y / 7))[..., None], 3, axis=2).astype(np.uint8)
    noise = np.random.default_rng(5).normal(0, 20, real.shape)
    virtual = np.clip(real + noise, 0, 255)
    share = image_errors(virtual.astype(np.uint8), real)["structure_error"]
    faint = np.clip(real.astype(float) * 0.5 + 100, 0, 255)  # half the dye, in both
    pale = np.clip(virtual * 0.5 + 100, 0, 255).astype(np.uint8)
    assert 0.1 < share < 0.9
    assert image_errors(pale, faint.astype(np.uint8))["structure_error"] == pytest.approx(share, abs=0.02)
    assert image_errors(pale, real)["structure_error"] == pytest.approx(share, abs=0.02)
    for nothing in (np.full_like(real, 90), 255 - real):
        assert image_errors(nothing, real)["structure_error"] == pytest.approx(1, abs=1e-3)
    glass = np.full_like(real, 200)
    assert (
        image_errors(glass - (np.arange(glass.shape[1])[None, :, None] % 2 * 2).astype(np.uint8), glass)[
            "structure_error"
        ]
        < 0.1
    )  # empty glass: hardly any structure, and hardly any error


def test_the_matched_error_is_never_above_the_raw_one():
    from stainers.image_errors import image_errors

    rng = np.random.default_rng(3)
    real, other = rng.integers(0, 256, (2, 24, 24, 3)).astype(np.uint8)
    for mixed in (other, np.clip(0.7 * real + 0.3 * other, 0, 255).astype(np.uint8)):
        found = image_errors(mixed, real)
        assert found["mse_matched"] <= found["mse"] + 1e-9


def test_dice_of_equal_and_of_empty_masks_is_one():
    from stainers.downstream import dice

    a = np.zeros((4, 4), bool)
    assert dice(a, a) == 1
    b = a.copy()
    b[:2] = True
    c = a.copy()
    c[1:3] = True
    assert dice(b, b) == 1
    assert dice(b, c) == 0.5
    assert dice(a, b) == 0


# ImageNet weights


def test_weights_are_looked_for_in_a_folder_and_in_the_cache_and_never_fetched(tmp_path, monkeypatch):
    from stainers import feature_metrics as f

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("fetched"))
    assert f.find_weights(f.ALEXNET, tmp_path) is None
    (tmp_path / f.ALEXNET).write_bytes(b"not the weights")
    with pytest.raises(BadInput, match="promises"):
        f.find_weights(f.ALEXNET, tmp_path)
    monkeypatch.setattr(f, "sha256_of", lambda _: "7be5be79" + "0" * 56)
    assert f.find_weights(f.ALEXNET, tmp_path) == tmp_path / f.ALEXNET
    (tmp_path / "cache" / "checkpoints").mkdir(parents=True)
    (tmp_path / "cache" / "checkpoints" / f.ALEXNET).write_bytes(b"")
    assert f.find_weights(f.ALEXNET) == tmp_path / "cache" / "checkpoints" / f.ALEXNET
    with pytest.raises(BadInput, match=f"{tmp_path}: the weights {f.INCEPTION} are not in it"):
        f.imagenet_weights(tmp_path)
    (tmp_path / f.ALEXNET).unlink()  # the cache does not stand in for a folder that was named
    with pytest.raises(BadInput, match=f"{f.ALEXNET} and {f.INCEPTION}"):
        f.imagenet_weights(tmp_path)
    assert f.imagenet_weights() == (tmp_path / "cache" / "checkpoints" / f.ALEXNET, None)


def test_lpips_loads_weights_once_from_where_they_lie(tmp_path, monkeypatch):
    """With random weights in the file's place: the code that loads is the code that is run."""
    from torchvision.models import _api as torchvision_models
    from torchvision.models import alexnet

    from stainers.feature_metrics import ALEXNET, lpips

    torch.manual_seed(0)
    path = tmp_path / ALEXNET
    torch.save(alexnet(weights=None).state_dict(), path)
    before = torch.hub.get_dir()
    loaded, load = [], torchvision_models.load_state_dict_from_url
    monkeypatch.setattr(
        torchvision_models, "load_state_dict_from_url", lambda url, **o: loaded.append(url) or load(url, **o)
    )
    a, b = (stained_of(p) for p in dic_patches(2))
    values = lpips([a, a], [a, b], path)
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert values[1] > 0
    assert torch.hub.get_dir() == before
    assert len(loaded) == 1


def test_the_inception_of_fid_takes_its_weights_key_for_key():
    from stainers.inception import FidInception

    torch.manual_seed(0)
    network = FidInception()
    state = {k: v for k, v in network.net.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert state["fc.weight"].shape == (1008, 2048)
    network.load_weights(state)
    assert network(torch.rand(1, 3, 64, 64)).shape == (1, 2048)
    del state["fc.bias"]
    with pytest.raises(BadInput, match=r"fc\.bias"):
        network.load_weights(state)


def test_the_frechet_distance_of_a_set_to_itself_is_nothing():
    from stainers.feature_metrics import Encoder, frechet

    encoder = Encoder(FakeClassifier(), 0.1)
    pictures = [stained_of(p) for p in dic_patches(8)]
    darker = [np.clip(p.astype(int) - 60, 0, 255).astype(np.uint8) for p in pictures]
    assert abs(frechet(encoder, pictures, pictures)) < 1e-3
    assert frechet(encoder, darker, pictures) > 0.05
    assert np.isnan(frechet(encoder, pictures[:1], pictures))
