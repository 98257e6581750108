"""Promises of the adversarial stainers: cell sets, networks, exact resumption, the choice of a checkpoint."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import BadInput
from stainers.cell_sets import Cells, DrawOptions, Sampler, StainSet

torch = pytest.importorskip("torch")


def cells(domain, colour, n=12, size=40, channels=3, modality="brightfield"):
    """Discs of two sizes on glass: the size is the class."""
    rng = np.random.default_rng(len(domain))
    y, x = np.mgrid[:size, :size]
    images, labels = [], []
    for i in range(n):
        large = i % 2
        image = np.full((size, size, channels), 230, np.float32)
        cx, cy = rng.uniform(0.4 * size, 0.6 * size, 2)
        image[(x - cx) ** 2 + (y - cy) ** 2 < (0.3 if large else 0.15) ** 2 * size**2] = colour[:channels]
        images.append(np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8))
        labels.append("large" if large else "small")
    splits = tuple(("train", "train", "train", "train", "validation", "test")[i // 2 % 6] for i in range(n))
    names = tuple(f"{domain}-{i}" for i in range(n))
    return Cells(domain, tuple(images), tuple(labels), names, splits, modality)


@pytest.fixture(scope="module")
def two_stains():
    torch.set_num_threads(1)
    return StainSet(cells("red", (200, 40, 60)), cells("blue", (40, 60, 200)))


@pytest.fixture(scope="module")
def recipe():
    from stainers.cyclegan import CycleGanRecipe
    from stainers.gan_networks import DiscriminatorOptions, GeneratorOptions
    from stainers.gan_training import RunOptions

    return CycleGanRecipe(
        generator=GeneratorOptions(width=4, blocks=2, residual=True),
        discriminator=DiscriminatorOptions(layers=2, width=4),
        draw=DrawOptions(crop_px=32),
        run=RunOptions(steps=4, batch=2, checkpoint_every=2, sample_every=4, choose_every=2),
        pool=3,
    )


# sets


def test_a_draw_is_the_same_whenever_it_is_made(two_stains):
    a, b = (Sampler(two_stains, DrawOptions(crop_px=32), 3) for _ in range(2))
    b.draw(40)
    one, other = a.draw(7), b.draw(7)
    np.testing.assert_array_equal(one.source, other.source)
    np.testing.assert_array_equal(one.target, other.target)
    assert one.source.shape == (3, 32, 32)
    assert 0 <= one.source.min() <= one.source.max() <= 1


def test_an_epoch_shows_every_source_cell_once(two_stains):
    sampler = Sampler(two_stains, DrawOptions(crop_px=40, zoom=0.0), 0)
    seen = {sampler.draw(i).source.tobytes() for i in range(len(sampler))}
    assert len(seen) == len(two_stains.source)


def test_pairing_by_label_meets_cells_of_the_same_class_and_random_pairing_does_not_care(two_stains):
    by_label = Sampler(two_stains, DrawOptions(crop_px=32, pairing="label"), 0)
    drawn = [by_label.draw(i) for i in range(40)]
    assert all(d.source_label == d.target_label for d in drawn)
    at_random = [Sampler(two_stains, DrawOptions(crop_px=32), 0).draw(i) for i in range(40)]
    assert any(d.source_label != d.target_label for d in at_random)


def test_pairing_by_label_without_a_partner_is_refused_with_the_class(two_stains):
    lone = replace(two_stains.target, labels=("small",) * len(two_stains.target))
    with pytest.raises(BadInput, match="large"):
        Sampler(StainSet(two_stains.source, lone), DrawOptions(crop_px=32, pairing="label"), 0)


def test_pairs_stay_pixel_by_pixel_together(two_stains):
    data = StainSet(two_stains.source, two_stains.source, paired=True)
    sampler = Sampler(data, DrawOptions(crop_px=24, pairing="paired", zoom=0.2, turns=True), 0)
    for i in range(6):
        drawn = sampler.draw(i)
        np.testing.assert_array_equal(drawn.source, drawn.target)


def test_dic_is_neither_flipped_nor_turned(two_stains):
    dic = replace(two_stains.source, modality="dic")
    with pytest.raises(BadInput, match="relief"):
        Sampler(StainSet(dic, two_stains.target), DrawOptions(crop_px=32, turns=True), 0)
    # without turns a crop of the whole patch is the patch
    whole = Sampler(StainSet(dic, two_stains.target), DrawOptions(crop_px=40, zoom=0.0), 0)
    images = {i.tobytes() for i in dic.images}
    for n in range(4):
        drawn = (whole.draw(n).source * 255).round().astype(np.uint8).transpose(1, 2, 0)
        assert drawn.tobytes() in images


def test_the_items_of_a_batch_differ_in_class_and_balance_is_asked_for():
    many = cells("red", (200, 40, 60), n=40)
    skewed = replace(many, labels=tuple("rare" if i < 4 else "common" for i in range(40)))
    sampler = Sampler(
        StainSet(skewed, many),
        DrawOptions(crop_px=32, class_per_item=True),
        0,
        ("common", "large", "rare", "small"),
    )
    for step in range(6):
        assert len({e.source_label for e in sampler.batch(step, 2)}) == 2
    share = {
        balanced: np.mean([sampler.batch(s, 1, balanced=balanced)[0].source_label == 2 for s in range(120)])
        for balanced in (False, True)
    }
    assert share[False] < 0.2
    assert 0.35 < share[True] < 0.65


def test_classes_that_a_batch_would_hold_all_of_come_by_their_frequency_until_balance_is_asked_for():
    many = cells("red", (200, 40, 60), n=50)
    kinds = ["a"] * 40 + ["b"] * 4 + ["c"] * 3 + [""] * 3  # the last without a class
    sampler = Sampler(
        StainSet(replace(many, labels=tuple(kinds)), many), DrawOptions(crop_px=32, class_per_item=True), 0
    )

    def shares(balanced):
        drawn = [e.source_label for s in range(50) for e in sampler.batch(s, 6, balanced=balanced)]
        return {k: drawn.count(i) / len(drawn) for k, i in (("", -1), ("a", 0), ("b", 1), ("c", 2))}

    assert shares(False) == pytest.approx({"": 0.06, "a": 0.8, "b": 0.08, "c": 0.06}, abs=1e-9)
    assert shares(True) == pytest.approx({"": 0, "a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, abs=1e-9)


def test_near_duplicates_of_a_folder_stay_on_one_side_and_classes_are_read(tmp_path):
    import cv2

    from stainers.cell_sets import read_cells

    rng = np.random.default_rng(0)
    for kind in ("a", "b"):
        (tmp_path / "mine" / kind).mkdir(parents=True)
        for i in range(4):
            image = rng.integers(0, 255, (30, 34, 3), dtype=np.uint8)
            cv2.imwrite(str(tmp_path / "mine" / kind / f"{i}.png"), image)
            cv2.imwrite(
                str(tmp_path / "mine" / kind / f"{i}-copy.png"),
                np.clip(image * 0.98, 0, 255).astype(np.uint8),
            )
    found = read_cells(tmp_path, "mine", scale=2.0, size_px=48)
    assert found.classes == ("a", "b")
    assert {i.shape for i in found.images} == {(48, 48, 3)}
    assert len(set(found.groups)) == 8
    for group in set(found.groups):
        assert len({s for s, g in zip(found.splits, found.groups, strict=True) if g == group}) == 1
    with pytest.raises(BadInput, match="theirs"):
        read_cells(tmp_path, "theirs")


# networks


@pytest.mark.parametrize(
    ("kind", "levels", "blocks"), [("resnet", 2, 9), ("resnet", 1, 2), ("unet", 7, 0), ("unet", 8, 0)]
)
def test_generators_of_the_papers_sizes_give_pictures(kind, levels, blocks):
    from stainers.gan_networks import GeneratorOptions, build

    options = GeneratorOptions(kind=kind, width=2, blocks=blocks, levels=levels)
    net = build(options, 2, n_targets=2).eval()
    side = max(net.multiple, 16)
    with torch.no_grad():
        latent = net.encode(torch.rand(1, 2, side, side))
        out = net.decode(latent, torch.tensor([1]))
    assert latent.code.shape[2] == side // 2**levels
    assert out.shape == (1, 3, side, side)
    assert 0 <= out.min() <= out.max() <= 1


@pytest.mark.parametrize("layers", [2, 3, 5])
def test_discriminators_of_two_three_and_five_layers_judge_their_smallest_image(layers):
    from stainers.gan_networks import DiscriminatorOptions, MultiScale

    options = DiscriminatorOptions(layers=layers, width=2, scales=2)
    judged = MultiScale(3, options, n_classes=4)(torch.rand(2, 3, *(options.smallest_px(),) * 2))
    assert len(judged) == 2
    assert all(j.real.numel() >= 2 and j.classes.shape == (2, 4) for j in judged)
    assert len(judged[0].features) == layers + 1


def test_with_pixel_norm_what_is_far_away_does_not_change_a_pixel_and_with_instance_norm_it_does():
    from stainers.gan_networks import GeneratorOptions, build

    for norm, same in (("pixel", True), ("instance", False)):
        torch.manual_seed(0)
        net = build(GeneratorOptions(width=4, blocks=2, norm=norm), 3).eval()
        x = torch.rand(1, 3, 256, 32)
        y = x.clone()
        y[:, :, 200:] = 1 - y[:, :, 200:]
        with torch.no_grad():
            away = (net(x) - net(y))[:, :, :64].abs().max()
        assert (float(away) < 1e-6) == same


def test_the_pool_gives_earlier_images_half_of_the_time():
    from stainers.gan_losses import ImagePool

    pool = ImagePool(4, seed=0)
    shown = [pool.exchange(torch.full((1, 1, 1, 1), float(i)), i).item() for i in range(200)]
    earlier = np.mean([s != i for i, s in enumerate(shown)])
    assert 0.35 < earlier < 0.65
    assert ImagePool(0, 0).exchange(torch.ones(1, 1, 1, 1), 0).item() == 1


# training


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(two_stains, recipe, tmp_path):
    from stainers.cyclegan import train

    whole = train(two_stains, tmp_path / "whole", recipe)
    train(two_stains, tmp_path / "parts", recipe, stop_at=2)
    parts = train(two_stains, tmp_path / "parts", recipe, resume=True)
    assert whole.step == parts.step == 4
    for kind in ("nets", "averages"):
        for name, net in getattr(whole, kind).items():
            other = getattr(parts, kind)[name].state_dict()
            for key, value in net.state_dict().items():
                torch.testing.assert_close(value, other[key], rtol=0, atol=0, msg=f"{name}.{key}")
    for name in ("losses.csv", "choice.csv"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "parts" / name).read_text()
    assert (tmp_path / "parts" / "samples-000004.png").is_file()


def test_a_checkpoint_of_another_recipe_is_refused(two_stains, recipe, tmp_path):
    from stainers.cyclegan import train

    train(two_stains, tmp_path, recipe, stop_at=2)
    with pytest.raises(BadInput, match="another recipe"):
        train(two_stains, tmp_path, replace(recipe, pool=7), resume=True)


def test_the_learning_rate_falls_linearly_after_its_constant_part(two_stains, recipe):
    from stainers.cyclegan import make_run

    run = make_run(replace(recipe, run=replace(recipe.run, steps=100, learning_rate=1.0)), two_stains)
    rates = []
    for run.step in (0, 50, 75, 99):
        rates.append(run.learning_rate())
    assert rates == pytest.approx([1.0, 1.0, 0.5, 0.02])


def test_the_checkpoint_of_the_best_downstream_score_is_kept_beside_that_of_the_best_loss(
    two_stains, recipe, tmp_path
):
    from stainers.cyclegan import train

    asked = []

    def score(apply):  # a judge that liked the first look best
        virtual = apply(two_stains.source.images[:1])
        assert virtual[0].shape == two_stains.source.images[0].shape
        asked.append(1)
        return 1.0 / len(asked)

    run = train(two_stains, tmp_path, recipe, scores={"forward": score})
    assert len(asked) == 2
    assert torch.load(tmp_path / "best-forward.pt", weights_only=True)["step"] == 2
    before = next(iter(run.averages["forward"].state_dict().values())).clone()
    run.take_averages(tmp_path / "best-forward.pt")
    assert not torch.equal(before, next(iter(run.averages["forward"].state_dict().values())))


def test_a_look_changes_nothing_that_a_cyclegan_learns(two_stains, recipe, tmp_path):
    from stainers.cyclegan import train

    often, seldom = (
        train(two_stains, tmp_path / str(n), replace(recipe, run=replace(recipe.run, choose_every=n)))
        for n in (1, 4)
    )
    for name, net in often.nets.items():
        for key, value in net.state_dict().items():
            assert torch.equal(value, seldom.nets[name].state_dict()[key]), f"{name}.{key}"


def test_a_cyclegan_learns_the_other_colour(two_stains, recipe, tmp_path):
    from stainers.cyclegan import CycleLosses, train

    run = replace(recipe.run, steps=60, learning_rate=2e-3, ema=0.9, choose_every=60, checkpoint_every=60)
    longer = replace(recipe, run=run, losses=CycleLosses(1.0, 2.0, 0.1), draw=DrawOptions(crop_px=24))
    run = train(two_stains, tmp_path, longer)
    red = two_stains.source.images[1]
    virtual = run.virtual("forward")([red])[0].astype(int)
    stained = red[..., 1] < 150
    blueness = [float((v[..., 2] - v[..., 0])[stained].mean()) for v in (red.astype(int), virtual)]
    assert blueness[1] > blueness[0] + 40


@pytest.mark.parametrize("wrong", [{"precision": "bf16"}, {"precision": "fp16"}, {"compile": "on"}])
def test_mixed_precision_and_compilation_are_refused_without_a_gpu(wrong):
    from stainers.averaged_run import speed_options
    from stainers.gan_training import RunOptions

    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    with pytest.raises(BadInput, match="GPU"):
        speed_options(RunOptions(**wrong), cpu)
    assert speed_options(RunOptions(), cpu) == (None, False)
    assert speed_options(RunOptions(), cuda) == (torch.bfloat16, False)
    assert speed_options(RunOptions(**wrong), cuda) != (None, False)
    with pytest.raises(BadInput, match="not known"):
        speed_options(RunOptions(precision="fp8"), cuda)


def test_a_resumed_run_keeps_the_rows_up_to_its_step_and_a_kill_meanwhile_loses_none(tmp_path, monkeypatch):
    from stainers import gan_records
    from storage.tables import append_rows

    table = tmp_path / "losses.csv"
    append_rows(table, [{"step": n, "loss": n / 2} for n in (1, 2, 3)])
    whole = table.read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            gan_records.drop_later(table, 2)
    assert table.read_bytes() == whole
    gan_records.drop_later(table, 2)
    append_rows(table, [{"step": 3, "loss": 9.0}])
    assert table.read_text().split() == ["step,loss", "1,0.5", "2,1.0", "3,9.0"]
    gan_records.drop_later(table, 0)
    assert not table.exists()
