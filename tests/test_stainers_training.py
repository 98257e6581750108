"""Training of stainers: data without leaks, strict recipes, exact resumption, a package at the end."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import BadInput
from tests.stainer_scenes import dic_image, dic_patches, smear_folder, tiny_recipe

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return smear_folder(tmp_path_factory.mktemp("smears"))


@pytest.fixture(scope="module")
def smears(folder):
    from stainers.data import load_smears

    torch.set_num_threads(1)
    found = load_smears(folder)
    # drawn smears are few: each split gets one of each source
    order = dict.fromkeys(("barcelona", "bccd", "raabin"), 0)
    out = []
    for s in found:
        out.append(replace(s, split=("train", "validation", "test")[order[s.domain] % 3]))
        order[s.domain] += 1
    return out


@pytest.fixture(scope="module")
def recipe():
    return tiny_recipe(4)


def test_a_confidence_is_fitted_on_validation_cells_alone_each_under_six_optics(smears):
    from collections import Counter

    from stainers.pair_sources import calibration_pairs

    held_out = {s.file: len(s.leukocytes) for s in smears if s.split == "validation"}
    pairs = calibration_pairs(smears, 50)
    assert Counter(p.source for p in pairs) == {name: 6 * n for name, n in held_out.items() if n}
    of_one = [p.dic for p in pairs if np.array_equal(p.stained, pairs[0].stained)]
    assert len(of_one) == 6
    assert all(not np.array_equal(a, b) for i, a in enumerate(of_one) for b in of_one[:i])


def test_wider_optics_are_drawn_where_a_recipe_asks_for_them(smears, recipe):
    from stainers.data import PairSampler

    train = [s for s in smears if s.split == "train"]
    usual, wide, again = (
        PairSampler(train, replace(recipe.pairs, wide_optics=w), 3).draw(0) for w in (0.0, 1.0, 1.0)
    )
    assert not np.array_equal(usual[0], wide[0])
    assert np.array_equal(wide[0], again[0])


def test_smears_are_brought_to_one_scale_by_their_red_cells(smears):
    assert {s.domain for s in smears} == {"barcelona", "bccd", "raabin"}
    for s in smears:
        sides = s.red_cells[:, 2:] - s.red_cells[:, :2]
        assert np.median(np.sqrt(sides.prod(axis=1))) == pytest.approx(75, rel=0.03)  # 7.5 µm


def test_near_duplicates_are_in_one_group():
    from storage.near_duplicates import near_duplicate_groups

    rng = np.random.default_rng(0)
    pictures = rng.random((6, 24, 24))
    pictures[4] = pictures[1] * 0.8 + 0.05 * rng.random((24, 24))
    pictures[5] = pictures[4]
    groups = near_duplicate_groups(pictures, 0.92)
    assert groups[1] == groups[4] == groups[5]
    assert len(set(groups)) == 4


@pytest.mark.parametrize("turned", [False, True])
def test_near_duplicates_are_found_a_few_rows_at_a_time_as_all_at_once(turned, monkeypatch):
    from storage import near_duplicates

    rng = np.random.default_rng(1)
    base = rng.random((9, 24, 24))
    pictures = np.concatenate([np.rot90(base, k, (1, 2)) for k in range(4)])[rng.permutation(36)]
    whole = near_duplicates.near_duplicate_groups(pictures, 0.9, turned=turned)
    held = []
    triu = np.triu
    monkeypatch.setattr(np, "triu", lambda table, k: held.append(table.size) or triu(table, k))
    monkeypatch.setattr(near_duplicates, "MAX_PRODUCTS", 5 * 36)
    np.testing.assert_array_equal(near_duplicates.near_duplicate_groups(pictures, 0.9, turned=turned), whole)
    assert len(set(whole)) == (9 if turned else 36)
    assert max(held) <= 5 * 36


def test_a_split_depends_on_the_group_alone_and_has_the_stated_shares():
    from stainers.data import split_of

    drawn = [split_of(f"image-{i}") for i in range(4000)]
    assert drawn == [split_of(f"image-{i}") for i in range(4000)]
    shares = [drawn.count(s) / 4000 for s in ("train", "validation", "test")]
    np.testing.assert_allclose(shares, [0.80, 0.08, 0.12], atol=0.02)


def test_a_window_reflects_beyond_the_image():
    from stainers.data import window

    image = np.arange(5)[None, :, None].repeat(5, 0)
    np.testing.assert_array_equal(window(image, (0, 2), 4)[0, :, 0], [2, 1, 0, 1])


def test_a_pair_number_is_the_same_pair_whenever_it_is_drawn(smears, recipe):
    from stainers.data import PairSampler

    a, b = PairSampler(smears, recipe.pairs, 1), PairSampler(smears, recipe.pairs, 1)
    b.draw(0)
    for x, y in zip(a.draw(7), b.draw(7), strict=True):
        np.testing.assert_array_equal(x, y)
    source, stained, domain = a.draw(7)
    assert source.shape == (2, 48, 48)
    assert stained.shape == (3, 48, 48)
    assert 0 <= stained.min() <= stained.max() <= 1
    assert domain in (0, 1, 2)
    assert not np.array_equal(a.draw(7)[0], a.draw(8)[0])


def test_a_folder_without_smears_is_refused_with_its_name(tmp_path):
    from stainers.data import load_smears

    with pytest.raises(BadInput, match=tmp_path.name):
        load_smears(tmp_path)


def test_every_shipped_recipe_can_be_read():
    from stainers.recipes import read_recipe, recipe_names

    assert recipe_names()
    for name in recipe_names():
        assert read_recipe(name).architecture


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("step: 5", "step"),
        ("losses: {l2: 1.0}", "l2"),
        ("steps: many", "steps"),
        ("network: {widths: [1, x]}", "widths"),
        ("- 1", "keys"),
        ("a: [", "YAML"),
    ],
)
def test_a_wrong_recipe_is_refused_with_the_key(tmp_path, text, said):
    from stainers.recipes import read_recipe

    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=said):
        read_recipe(path)


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(smears, recipe, tmp_path):
    from stainers.training import train_generator

    whole = train_generator(smears, tmp_path / "whole", recipe)
    train_generator(smears, tmp_path / "parts", recipe, stop_at=2)
    parts = train_generator(smears, tmp_path / "parts", recipe, resume=True)
    assert whole.step == parts.step == 4
    for part in ("generator", "average"):
        a, b = getattr(whole, part).state_dict(), getattr(parts, part).state_dict()
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=0, atol=0, msg=key)
    assert (tmp_path / "parts" / "samples-000004.png").is_file()
    assert len((tmp_path / "parts" / "losses.csv").read_text().splitlines()) == 5


def test_a_checkpoint_of_another_recipe_is_refused(smears, recipe, tmp_path):
    from stainers.training import train_generator

    train_generator(smears, tmp_path, recipe, stop_at=2)
    with pytest.raises(BadInput, match="another recipe"):
        train_generator(smears, tmp_path, replace(recipe, learning_rate=0.5), resume=True)


def test_the_adversarial_loss_trains_generator_and_judge(smears, recipe, tmp_path):
    from stainers.recipes import LossRecipe
    from stainers.training import train_generator

    losses = LossRecipe(adversarial=0.1, adversarial_from=0.0)
    run = train_generator(smears, tmp_path, replace(recipe, losses=losses, latent_noise=0.5), stop_at=2)
    assert run.judge is not None
    assert "adversarial" in (tmp_path / "losses.csv").read_text().splitlines()[0]


def test_a_classifiers_eye_and_levelled_light_take_part_in_training(smears, recipe, tmp_path):
    from stainers.training import train_generator

    plan = replace(
        recipe,
        steps=2,
        losses=replace(recipe.losses, feature=0.25, named=0.1),
        pairs=replace(recipe.pairs, level_light=True),
    )
    seen: list[dict[str, float]] = []
    train_generator(smears, tmp_path, plan, progress=lambda step, total, parts: seen.append(parts))
    assert seen[0]["feature"] > 0
    assert seen[0]["named"] >= 0
    assert "feature" in (tmp_path / "losses.csv").read_text(encoding="utf-8").splitlines()[0]


def test_a_run_goes_on_from_a_stainer_of_the_same_network_alone(smears, recipe, tmp_path):
    from stainers.export import export_package
    from stainers.networks import PolarityNet
    from stainers.training import Run, train_generator

    first = train_generator(smears, tmp_path / "first", recipe)
    package = export_package(
        first.average, PolarityNet(), smears, recipe, tmp_path / "package", steps_done=3, cells_per_domain=1
    )
    again = replace(recipe, start=str(package.folder), steps=1, learning_rate=0.0)
    begun = Run(again, torch.device("cpu"))
    kept = first.average.state_dict()
    assert all(torch.allclose(v, kept[k], atol=1e-3) for k, v in begun.average.state_dict().items())
    assert all(torch.equal(v, begun.average.state_dict()[k]) for k, v in begun.generator.state_dict().items())
    wider = replace(again, network=replace(again.network, widths=(10, *again.network.widths[1:])))
    with pytest.raises(BadInput, match="another network"):
        Run(wider, torch.device("cpu"))
    with pytest.raises(BadInput, match="no DIC stainer"):
        Run(replace(again, start="tecom-to-cellavision"), torch.device("cpu"))


def test_a_resumed_run_needs_no_more_what_it_started_from(smears, recipe, tmp_path):
    from stainers.export import export_package
    from stainers.networks import PolarityNet
    from stainers.training import Run, train_generator

    package = export_package(
        Run(recipe, torch.device("cpu")).average, PolarityNet(), smears, recipe, tmp_path / "package",
        steps_done=0, cells_per_domain=1,
    )  # fmt: skip
    again = replace(recipe, start=str(package.folder), steps=2)
    train_generator(smears, tmp_path / "again", again, stop_at=1)
    shutil.rmtree(package.folder)
    assert train_generator(smears, tmp_path / "again", again, resume=True).step == 2


def test_training_learns_the_colours_of_a_smear(smears, recipe):
    """The loss on fixed pairs falls: gradients reach the weights, and the right way."""
    from stainers.data import PairSampler
    from stainers.training import Run

    torch.manual_seed(0)
    run = Run(replace(recipe, learning_rate=5e-3, steps=25), torch.device("cpu"))
    draws = [PairSampler(smears, recipe.pairs, 3).draw(i) for i in range(4)]
    source, stained = (torch.from_numpy(np.stack([d[i] for d in draws])) for i in (0, 1))
    domain = torch.tensor([d[2] for d in draws])
    first = run.train_step(source, stained, domain)["l1"]
    for _ in range(24):
        last = run.train_step(source, stained, domain)["l1"]
    assert last < 0.5 * first


def test_training_ends_in_a_package_that_stains(folder, smears, recipe, tmp_path, monkeypatch):
    from stainers import training
    from storage.packages import read_package
    from storage.registry import load

    monkeypatch.setattr(training, "load_smears", lambda *_, **__: smears)
    metrics = training.train_stainer(folder, tmp_path, recipe=recipe, steps=2, cells_per_domain=2)
    assert metrics["measured_on"] == "computed DIC"
    assert metrics["all"]["n"] == 6
    stainer = load("stainer", str(tmp_path / "package"))
    said = read_package(tmp_path / "package").card.training
    assert (said["steps_done"], said["checkpoint"], said["checkpoint_step"]) == (2, "last", 2)
    assert stainer.stain(dic_patches(1)).image.shape == (1, 64, 64, 3)


def test_ssim_is_one_for_equal_images_and_falls_with_noise():
    from stainers.losses import ssim

    torch.manual_seed(0)
    a = torch.rand(2, 3, 40, 40)
    torch.testing.assert_close(ssim(a, a), torch.ones(2))
    assert (ssim(a, (a + 0.3 * torch.randn_like(a)).clamp(0, 1)) < 0.8).all()


def test_ssim_agrees_with_skimage():
    from skimage.metrics import structural_similarity

    from stainers.losses import ssim

    rng = np.random.default_rng(0)
    a = np.clip(dic_image(80, 90, 5, 0) / 255.0, 0, 1)
    b = np.clip(a + rng.normal(0, 0.05, a.shape), 0, 1)
    theirs = structural_similarity(
        a, b, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    ours = float(ssim(*(torch.from_numpy(x)[None, None].float() for x in (a, b))))
    assert ours == pytest.approx(theirs, abs=2e-3)


def test_an_interval_holds_the_mean_and_widens_with_fewer_sources():
    from stainers.intervals import interval

    values = np.random.default_rng(0).normal(0.5, 0.1, 60)
    mean, low, high = interval(values, [str(i) for i in range(60)])
    assert low < mean < high
    _, low4, high4 = interval(np.repeat(values[:6], 10), [str(i // 10) for i in range(60)])
    assert high4 - low4 > high - low
