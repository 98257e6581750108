"""A stained cell in the look of another stain: its colours are the other's, its forms its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.stainer_scenes import smear_folder

DOMAINS = ("barcelona", "bccd", "raabin")


@pytest.fixture(scope="module")
def smears(tmp_path_factory):
    from stainers.data import load_smears

    lamps = {"barcelona": (1.0, 1.0, 1.0), "bccd": (0.8, 0.9, 1.0), "raabin": (0.9, 0.8, 0.8)}
    found = []
    for smear in load_smears(smear_folder(tmp_path_factory.mktemp("smears"))):
        lamp = np.array(lamps[smear.domain])
        image = np.rint(smear.image * lamp).astype(np.uint8)
        found.append(replace(smear, image=image, background_rgb=tuple(lamp * smear.background_rgb)))
    return found


def look(glass, nucleus, around):
    """Glass RGB and densities of nuclei and of what surrounds them, as `landmarks_measure` orders them."""
    return np.array([*glass, *nucleus, *around, 0.2, 0.01], float)


def test_glass_nuclei_and_cytoplasm_take_the_colours_of_the_other_look():
    from stainers.looks import in_look

    violet = look((240, 230, 220), (0.5, 0.8, 0.2), (0.1, 0.2, 0.05))
    blue = look((200, 210, 205), (0.6, 0.5, 0.1), (0.15, 0.1, 0.02))
    glass = np.array([250, 240, 230], float)  # the lamp of this smear
    parts = np.stack([np.zeros(3), violet[6:9], violet[3:6]])
    crop = np.rint(glass * 10.0**-parts).astype(np.uint8)[:, None].repeat(4, 1)
    turned = in_look(crop, tuple(glass), violet, blue).astype(float)
    expected = blue[:3] * 10.0 ** -np.stack([np.zeros(3), blue[6:9], blue[3:6]])
    np.testing.assert_allclose(turned[:, 0], expected, atol=6)  # the map is a ridge's, near both landmarks
    assert np.abs(crop[:, 0] - expected).max() > 30  # as it was, it was nowhere near


def test_a_look_is_measured_for_every_stain_and_its_glass_is_that_of_its_smears(smears):
    from stainers.looks import measure_looks

    looks = measure_looks(smears)
    assert tuple(sorted(looks)) == DOMAINS
    for domain, found in looks.items():
        glass = np.median([s.background_rgb for s in smears if s.domain == domain], axis=0)
        np.testing.assert_allclose(found[:3], glass)
        assert np.isfinite(found[3:9]).all()


def test_pairs_in_other_looks_keep_their_dic_and_take_another_target(smears):
    from stainers.data import PairOptions, PairSampler

    options = PairOptions(crop_px=48, context_px=64, scale_jitter=0.0)
    plain = PairSampler(smears, options, 1)
    other = PairSampler(smears, replace(options, other_looks=1.0), 1)
    for number in range(6):
        (dic, stained, own), (same, turned, target) = plain.draw(number), other.draw(number)
        np.testing.assert_array_equal(dic, same)
        assert target != own
        assert np.abs(stained - turned).mean() > 0.005


def test_without_another_stain_a_pair_keeps_its_own(smears):
    from stainers.data import PairOptions, PairSampler

    one = [s for s in smears if s.domain == "bccd"]
    options = PairOptions(crop_px=48, context_px=64)
    plain, other = (PairSampler(one, replace(options, other_looks=v), 1).draw(2) for v in (0.0, 1.0))
    for a, b in zip(plain, other, strict=True):
        np.testing.assert_array_equal(a, b)
