"""Confidence of a stainer: information, passes, calibration, and what a spoilt input looks like."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch


def test_mutual_information_of_an_image_with_itself_is_its_entropy():
    from stainers.confidence import mutual_information

    rng = np.random.default_rng(0)
    a = rng.random((64, 64))
    own, entropy = mutual_information(a, a)
    assert own == pytest.approx(entropy)
    with_noise, _ = mutual_information(a, np.clip(a + rng.normal(0, 0.2, a.shape), 0, 1))
    assert with_noise < 0.5 * own


def test_the_entropy_beside_a_mutual_information_is_that_of_the_first_image():
    from stainers.confidence import mutual_information

    many, two = np.random.default_rng(0).random((64, 64)), np.zeros((64, 64))
    two[:, 32:] = 0.9
    assert mutual_information(two, many)[1] == pytest.approx(np.log(2))
    assert mutual_information(many, two)[1] > 2
    assert mutual_information(two, two)[0] == pytest.approx(np.log(2))


def test_the_noise_is_that_of_its_seed():
    from stainers.confidence import NoiseOptions, disturbed_outputs
    from stainers.networks import build_generator

    net = build_generator("unet-film", 2, widths=(4, 4, 4, 4), blocks=(0, 0, 0, 0)).eval()
    x = torch.ones(1, 2, 32, 32)
    one, again, other = (
        disturbed_outputs(net, x, 1, NoiseOptions(samples=2, alpha=1.0, seed=s))[1] for s in (1, 1, 2)
    )
    torch.testing.assert_close(one, again)
    assert not torch.allclose(one, other)


def test_noise_is_put_on_what_is_shown_and_not_on_the_empty_ground():
    from stainers.confidence import NoiseOptions, disturbed_outputs
    from stainers.networks import Latent

    class Mirror(torch.nn.Module):  # shows its code
        def encode(self, x):
            return Latent(x, ())

        def decode(self, latent, target):
            return latent.code

    x = torch.full((1, 3, 40, 40), 0.9)
    x[..., 10:30, 10:30] = 0.3
    primary, noisy = disturbed_outputs(Mirror(), x, 0, NoiseOptions(samples=4, alpha=1.0))
    changed = (noisy != primary).any(dim=1).all(dim=0)
    assert changed[10:30, 10:30].all()
    assert int(changed.sum()) == 400


def test_confidence_takes_one_encoder_pass_and_k_plus_one_decoder_passes():
    from stainers.confidence import NoiseOptions, disturbed_outputs
    from stainers.networks import build_generator

    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = build_generator("unet-film", 2, widths=(4, 4, 4, 4), blocks=(0, 0, 0, 0)).eval()
            self.encoded = self.decoded = 0

        def encode(self, x):
            self.encoded += len(x)
            return self.net.encode(x)

        def decode(self, latent, target):
            self.decoded += len(target)
            return self.net.decode(latent, target)

    net = Counting()
    x = torch.randn(1, 2, 32, 32)
    primary, others = disturbed_outputs(net, x, 1, NoiseOptions(samples=3, alpha=1.0))
    assert (net.encoded, net.decoded) == (1, 4)
    assert others.shape == (3, *primary.shape)
    silent = disturbed_outputs(net, x, 1, NoiseOptions(samples=2, alpha=0.0))[1]
    torch.testing.assert_close(silent[0], primary)


def test_calibration_ranks_and_separates():
    from stainers.confidence import FEATURES, Calibration, fit_calibration
    from stainers.reliability import auroc

    rng = np.random.default_rng(0)
    clean = rng.normal(0, 1, (200, len(FEATURES)))
    error = np.exp(-2.5 + 0.4 * clean[:, 0])
    spoilt = rng.normal(0, 1, (100, len(FEATURES)))
    spoilt[:, 3] += 6
    made = fit_calibration(clean, error, spoilt, np.full(100, 0.3))
    again = Calibration.from_card(json.loads(json.dumps(made.to_card())))
    good, bad = again.confidence(clean), again.confidence(spoilt)
    assert auroc(-good, -bad) > 0.98
    assert np.mean(good >= 0.5) > 0.95
    with pytest.raises(ValueError, match="other features"):
        Calibration.from_card({**made.to_card(), "features": ["x"]})


def test_a_card_may_name_the_features_that_earlier_ones_had():
    from stainers.confidence import DIC_FEATURES, FEATURES, Calibration
    from stainers.networks import PolarityNet
    from stainers.unet_film import DicStainer

    def card(features):
        k = len(features)
        zeros = (0.0,) * k
        made = Calibration(zeros, (1.0,) * k, (0.0,) * (k + 1), 0.5, (0.0,) * (2 * k + 1))
        return made.to_card(features)

    def stainer():
        return DicStainer(
            torch.nn.Identity(),
            PolarityNet(),
            name="a",
            targets=("b",),
            noise=None,
            calibration=None,
            min_confidence=0.5,
        )

    for features in (FEATURES, DIC_FEATURES):
        one = stainer()
        one.take_calibration(card(features))
        assert one.features == features
        assert one.confidence(np.zeros((2, len(features)))).shape == (2,)
    with pytest.raises(ValueError, match="other features"):
        stainer().take_calibration(card(("input_offset",)))


def test_auroc_counts_ties_half():
    from stainers.reliability import auroc

    assert auroc(np.zeros(5), np.zeros(3)) == 0.5
    assert auroc(np.arange(5.0), np.arange(5.0) + 10) == 1.0


def test_a_missing_part_is_a_blob_and_clipped_relief_is_none():
    from stainers.confidence import blob_share

    mask = np.zeros((64, 64), bool)
    mask[10:13] = True  # a clipped edge, three pixels thin
    assert blob_share(mask) == 0
    mask[20:40, 20:40] = True
    assert blob_share(mask) == pytest.approx(12 * 12 / 64**2)
    assert blob_share(np.ones((4, 4), bool)) == 0


def test_a_patch_with_a_part_missing_is_never_trusted_like_a_whole_one():
    from stainers.confidence import DIC_FEATURES, Calibration, input_features, part_missing
    from stainers.unet_film import DicStainer

    grey = np.random.default_rng(0).normal(128, 12, (128, 128)).clip(1, 254)
    holed = grey.copy()
    holed[30:60, 30:60] = 0
    k, at = len(DIC_FEATURES), DIC_FEATURES.index("input_saturated_blob")
    rows = np.zeros((2, k))
    for row, image in zip(rows, (grey, holed), strict=True):
        row[at] = input_features(image, (image - 128) / 12, 12.0, 0.5)["input_saturated_blob"]
    assert part_missing(rows, DIC_FEATURES).tolist() == [False, True]

    blind = Calibration((0.0,) * k, (1.0,) * k, (*(0.0,) * k, np.log(0.05)), 0.1, (0.0,) * (2 * k) + (-9.0,))
    stainer = DicStainer(
        torch.nn.Identity(), torch.nn.Identity(), name="x", targets=("a",), noise=None, calibration=blind,
        min_confidence=0.5,
    )  # fmt: skip
    whole, missing = stainer.confidence(rows)
    assert whole == pytest.approx(0.75, abs=0.01)
    assert missing == pytest.approx(0.375, abs=0.01)


def test_an_expected_error_and_a_spoilt_input_each_cost_confidence():
    from stainers.confidence import FEATURES, Calibration

    k = len(FEATURES)
    error = np.zeros(k + 1)
    error[0], error[-1] = 1.0, np.log(0.05)
    spoilt = np.zeros(2 * k + 1)
    spoilt[1], spoilt[-1] = 20.0, -10.0
    made = Calibration((0.0,) * k, (1.0,) * k, tuple(error), 0.1, tuple(spoilt))
    rows = np.zeros((5, k))
    rows[1, 0] = np.log(2)  # twice the error: at the edge
    rows[4, 1] = 0.5435  # looks spoilt with a probability of 0.7: unusual optics do
    rows[2, 1] = 1.0  # spoilt for certain
    rows[3, 0] = 3.0
    np.testing.assert_allclose(made.expected_error(rows)[:2], [0.05, 0.1], rtol=1e-6)
    sound, edge, bad, wrong, unusual = made.confidence(rows)
    assert sound == pytest.approx(0.75, abs=0.01)
    assert edge == pytest.approx(0.5, abs=0.01)
    assert bad == pytest.approx(0.5 * 0.75, abs=0.03)
    assert made.spoilt(rows)[4] == pytest.approx(0.7, abs=0.01)
    assert unusual == pytest.approx(0.75, abs=0.03)
    assert wrong == 0
