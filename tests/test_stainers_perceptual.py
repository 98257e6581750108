"""Losses under a frozen classifier, and targets without their lamps' colours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.errors import BadInput
from stainers.data import Smear, level_light
from stainers.perceptual import PerceptualLoss, load_judge, white_of


@pytest.fixture(scope="module")
def judge():
    from classifiers.networks import build_backbone

    torch.manual_seed(0)
    return PerceptualLoss(
        build_backbone("resnet18_slim", 4), input_px=32, mean=(0.5,) * 3, std=(0.25,) * 3, classes=3
    )


def images(seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(seed)) * 0.8 + 0.1


def test_equal_images_cost_nothing_and_others_something(judge):
    same = judge(images(), images())
    other = judge(images(1), images())
    assert float(same[0]) == pytest.approx(0, abs=1e-6)
    assert float(same[1]) == pytest.approx(0, abs=1e-6)
    assert float(other[0]) > 0.01
    assert float(other[1]) > 0


def test_the_judge_learns_nothing_and_the_image_does(judge):
    before = {k: v.clone() for k, v in judge.state_dict().items()}
    image = images(1).requires_grad_(True)
    judge.train()
    feature, named = judge(image, images())
    (feature + named).backward()
    assert not judge.network.training
    assert image.grad is not None
    assert float(image.grad.abs().sum()) > 0
    assert all(p.grad is None for p in judge.network.parameters())
    assert all(torch.equal(before[k], v) for k, v in judge.state_dict().items())


def test_the_amount_of_dye_that_both_images_share_is_no_part_of_the_loss():
    from functools import partial

    from classifiers.networks import build_backbone
    from classifiers.views import nuclear_gain

    torch.manual_seed(0)
    network = build_backbone("resnet18_slim", 4)
    how = {"input_px": 48, "mean": (0.5,) * 3, "std": (0.25,) * 3, "classes": 3}
    plain = PerceptualLoss(network, **how)
    evened = PerceptualLoss(network, **how, gain_of=partial(nuclear_gain, cell_share=0.6, hue=0.0))
    image, stained = (v / white_of(images(0)) for v in (images(1), images(0)))
    image, stained = image.clamp(0.1, 1), stained.clamp(0.1, 1)
    paler = [v**0.7 for v in (image, stained)]  # seven tenths of the optical density
    assert torch.stack(evened(*paler)).tolist() == pytest.approx(
        torch.stack(evened(image, stained)).tolist(), rel=0.02
    )
    assert float(plain(*paler)[0]) != pytest.approx(float(plain(image, stained)[0]), rel=0.02)
    # Too little dye in the virtual image alone is seen.
    assert float(evened(stained**0.7, stained)[0]) > 0.05


def test_the_judge_looks_at_the_frame_of_the_real_cell_alone():
    from functools import partial

    from classifiers.networks import build_backbone
    from classifiers.views import cut_square

    torch.manual_seed(0)
    asked = []

    def frame_of(picture):
        asked.append(picture)
        return 24.0, 24.0, 24.0

    how = {"input_px": 32, "mean": (0.5,) * 3, "std": (0.25,) * 3, "classes": 3}
    network = build_backbone("resnet18_slim", 4)
    judge = PerceptualLoss(network, **how, frame_of=frame_of, cut=partial(cut_square, out_px=32))
    image, stained = images(1).requires_grad_(True), images()
    loss = sum(judge(image, stained))
    loss.backward()
    assert [p.shape for p in asked] == [(48, 48, 3)] * 2
    assert np.array_equal(asked[0], (stained[0].permute(1, 2, 0) * 255).round().byte().numpy())
    inside = image.grad[:, :, 12:36, 12:36].abs().sum()
    assert 0 < float(inside) == pytest.approx(float(image.grad.abs().sum()))
    elsewhere = image.detach().clone()
    elsewhere[:, :, :10] = 0.5
    seen = float(loss.detach())
    assert float(sum(judge(elsewhere, stained))) == pytest.approx(seen, rel=1e-5)
    assert float(sum(PerceptualLoss(network, **how)(elsewhere, stained))) != pytest.approx(seen)


def test_all_networks_of_a_judge_have_their_share_in_the_name():
    from classifiers.networks import build_backbone

    torch.manual_seed(0)
    first, second = build_backbone("resnet18_slim", 4), build_backbone("resnet18_slim", 4)
    how = {"input_px": 32, "mean": (0.5,) * 3, "std": (0.25,) * 3, "classes": 3}
    alone, other = PerceptualLoss(first, **how), PerceptualLoss(second, **how)
    both = PerceptualLoss(first, **how, companions=(second,), shares=(0.75, 0.25))
    view = images()
    expected = 0.75 * alone._look(view, None)[1] + 0.25 * other._look(view, None)[1]
    assert torch.allclose(both._look(view, None)[1], expected, atol=1e-5)
    assert torch.equal(both._look(view, None)[0][-1], alone._look(view, None)[0][-1])


@pytest.mark.parametrize("frame", [(24.0, 24.0, 32.0), (5.0, 40.0, 41.0), (20.0, 20.0, 90.0)])
def test_a_view_that_gradients_go_through_is_the_view_that_cells_are_named_in(frame):
    from classifiers.views import crop_square, cut_square

    picture = (images()[0].permute(1, 2, 0) * 255).round().byte().numpy()
    tensor = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
    assert torch.allclose(cut_square(tensor, frame, 32), crop_square(picture, *frame, 32), atol=1e-6)


def test_white_is_the_bright_end_of_each_channel_and_never_black():
    stained = torch.full((1, 3, 40, 40), 0.2)
    stained[:, 0] = 0.9
    white = white_of(stained)
    assert white.shape == (1, 3, 1, 1)
    assert white.flatten().tolist() == pytest.approx([0.9, 0.45, 0.45])


def test_the_shipped_classifier_can_judge():
    loss = load_judge("leukocyte-classes")
    assert len(loss.companions) == len(loss.shares) - 1 == 1
    assert sum(loss.shares) == pytest.approx(1)
    feature, named = loss(images(1), images())
    assert torch.isfinite(feature)
    assert torch.isfinite(named)


def test_a_classifier_that_cannot_judge_is_named(monkeypatch):
    monkeypatch.setattr("storage.registry.load", lambda task, name: object())
    with pytest.raises(BadInput, match="classifier plain cannot judge images in training"):
        load_judge("plain")


def smear(domain: str, split: str, glass: float) -> Smear:
    image = np.full((8, 8, 3), glass, np.uint8)
    image[:4] = int(glass / 2)
    none = np.zeros((0, 4), np.float32)
    return Smear("a", domain, split, image, none, none, (glass, glass, glass), 0.2)


def test_levelled_targets_have_the_median_glass_of_their_own_stain():
    made = [smear("bccd", "train", g) for g in (100.0, 150.0, 200.0)] + [smear("bccd", "test", 120.0)]
    made += [smear("raabin", "train", 220.0)]
    levelled = level_light(made)
    assert [s.image[7, 7, 0] for s in levelled] == pytest.approx([150, 150, 150, 150, 220], abs=1)
    assert [s.image[0, 0, 0] for s in levelled] == pytest.approx([75, 75, 75, 75, 110], abs=1)
    assert levelled[3].background_rgb == pytest.approx((150, 150, 150))
    assert [replace(s, image=None, background_rgb=None) for s in levelled][3].split == "test"
