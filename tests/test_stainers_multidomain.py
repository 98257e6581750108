"""The multi-domain stainer keeps to thesis chapter 5: losses, order of passes, phases, partly paired data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import BadInput
from tests.domain_scenes import domain_set

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def recipe():
    from stainers.domain_sets import DomainOptions
    from stainers.gan_training import RunOptions
    from stainers.multidomain.networks import MultiDomainNetwork
    from stainers.multidomain.training import MultiDomainRecipe, Phases

    torch.set_num_threads(1)
    return MultiDomainRecipe(
        generator=MultiDomainNetwork(width=4, blocks=1, judge_width=4, judge_layers=2),
        phases=Phases(first=0.25, second=0.25, critic_steps=2),
        data=DomainOptions(crop_px=16, context_px=24),
        run=RunOptions(steps=8, batch=4, checkpoint_every=2, sample_every=8, choose_every=4, seed=3),
    )


@pytest.fixture(scope="module")
def data():
    return domain_set()


def make_run(recipe):
    from stainers.multidomain.training import MultiDomainRun

    return MultiDomainRun(recipe, 2, recipe.run.steps, torch.device("cpu"))


def a_batch(recipe, data, step=0):
    from stainers.domain_sets import DomainSampler
    from stainers.domain_training import to_domain_batch

    sampler = DomainSampler(data, recipe.data, 3)
    return to_domain_batch(sampler.batch(step, recipe.run.batch), torch.device("cpu"))


# data


def test_classes_and_masks_are_handed_to_the_dic_of_the_same_cell_and_to_no_other(data):
    for cell in data.cells:
        if cell.domain == 3:
            assert bool(cell.label) == (cell.mask is not None) == (cell.partner >= 0)
        if cell.partner >= 0:
            assert data.cells[cell.partner].label == cell.label
            assert data.cells[cell.partner].domain != cell.domain


def test_one_sided_partners_are_refused(data):
    cells = list(data.cells)
    first = next(i for i, c in enumerate(cells) if c.partner >= 0)
    cells[first] = replace(cells[first], partner=-1)
    with pytest.raises(ValueError, match="partner"):
        replace(data, cells=tuple(cells))


def test_targets_are_a_permutation_of_the_batch_where_no_partner_is_asked_for(recipe, data):
    from stainers.domain_sets import DomainSampler

    sampler = DomainSampler(data, replace(recipe.data, paired_share=0.0), 1)
    for step in range(5):
        examples = sampler.batch(step, 8)
        assert sorted(e.domain for e in examples) == sorted(e.target for e in examples)
        assert [sum(e.domain == d for e in examples) for d in range(4)] == [2, 2, 2, 2]


def test_a_stain_is_never_sent_to_dic_more_often_than_the_permutation_sends_it(data, recipe):
    from stainers.domain_sets import DomainSampler

    sampler = DomainSampler(data, replace(recipe.data, paired_share=1.0), 1)
    drawn = [e for step in range(300) for e in sampler.batch(step, 4)]
    share = {d: np.mean([e.target == 3 for e in drawn if e.domain == d]) for d in range(4)}
    assert all(share[d] == pytest.approx(0.25, abs=0.08) for d in range(3))
    assert share[3] < 0.15  # of DIC items none that has a partner
    assert all(e.paired for e in drawn if e.domain == 3 and e.mask.max() < 255)


def test_a_paired_example_shows_the_same_part_of_the_same_cell(data, recipe):
    from stainers.domain_sets import DomainSampler

    sampler = DomainSampler(data, replace(recipe.data, paired_share=1.0), 1)
    found = [e for step in range(6) for e in sampler.batch(step, 8) if e.paired and e.domain == 3]
    assert found
    for e in found:
        inside = e.mask >= 2  # the disc of the mask is dark in the partner's stain
        assert e.partner[:, inside].mean() < 0.6 < e.partner[:, ~inside].mean()


def test_a_batch_number_is_the_same_batch_whenever_it_is_drawn(data, recipe):
    from stainers.domain_sets import DomainSampler

    a, b = DomainSampler(data, recipe.data, 1), DomainSampler(data, recipe.data, 1)
    a.batch(0, 4)
    for x, y in zip(a.batch(7, 4), b.batch(7, 4), strict=True):
        np.testing.assert_array_equal(x.picture, y.picture)
        assert (x.target, x.label, x.paired) == (y.target, y.label, y.paired)


def test_a_domain_without_cells_is_refused_by_name(data, recipe):
    from stainers.domain_sets import DomainSampler

    gone = replace(data, cells=tuple(c for c in data.cells if c.partner < 0 and c.domain != 1))
    with pytest.raises(BadInput, match="bccd"):
        DomainSampler(gone, recipe.data, 0)


def test_a_kept_set_comes_back_and_another_key_makes_it_anew(data, tmp_path):
    from stainers.domain_sets import kept

    path, made = tmp_path / "pool.npz", []

    def make():
        made.append(1)
        return data

    kept(path, {"a": 1}, make)
    back = kept(path, {"a": 1}, make)
    assert len(made) == 1
    assert (back.domains, back.classes, back.count()) == (data.domains, data.classes, data.count())
    for x, y in zip(back.cells, data.cells, strict=True):
        np.testing.assert_array_equal(x.picture, y.picture)
        assert (x.mask is None) == (y.mask is None)
    kept(path, {"a": 2}, make)
    assert len(made) == 2


def test_computed_domains_are_partly_paired(tmp_path):
    from stainers.data import load_smears
    from stainers.domain_sets import DomainOptions, computed_domains
    from tests.stainer_scenes import smear_folder

    smears = load_smears(smear_folder(tmp_path, 1))
    options = DomainOptions(cells=10, context_px=48, crop_px=32, pairs_known=0.4)
    made = computed_domains(
        smears,
        options,
        0,
        name=lambda p: ["lymphocyte"] * len(p),
        outline=lambda p: np.zeros(p.shape[:3], np.uint8),
    )
    count = made.count()
    assert 0 < count["pairs"] < 10
    assert made.pseudo == sum(1 for c in made.cells if c.domain < 3)
    assert sum(count[d] for d in made.domains) == 10 + count["pairs"]
    alone = [c for c in made.cells if c.domain == 3 and c.partner < 0]
    assert alone
    assert all(c.mask is None and not c.label for c in alone)


# losses


def test_the_penalty_of_a_linear_critic_is_the_distance_of_its_slope_from_one():
    from stainers.wasserstein import gradient_penalty

    a, b = torch.rand(5, 3, 4, 4), torch.rand(5, 3, 4, 4)
    slope = torch.full((3, 4, 4), 3.0 / 48**0.5)  # norm 3
    found = gradient_penalty(lambda x: (x * slope).flatten(1).sum(1, keepdim=True), a, b)
    assert float(found) == pytest.approx(4.0, rel=1e-5)
    unit = gradient_penalty(lambda x: (x * slope / 3).flatten(1).sum(1, keepdim=True), a, b)
    assert float(unit) == pytest.approx(0.0, abs=1e-10)


def test_the_penalty_of_a_square_critic_is_known_on_the_line_between_two_images():
    """f = |x|^2 has slope 2 |x|; between two equal images there is one point."""
    from stainers.wasserstein import gradient_penalty

    image = torch.full((2, 1, 2, 2), 0.75)  # norm 1.5, slope 3
    assert float(gradient_penalty(lambda x: (x**2).sum((1, 2, 3))[:, None], image, image)) == pytest.approx(
        4.0
    )


def test_critic_and_generator_pull_the_verdict_apart():
    from stainers.wasserstein import critic_loss, generator_loss

    real, fake = torch.tensor([2.0, 4.0]), torch.tensor([1.0, -1.0])
    assert float(critic_loss(real, fake)) == -3.0
    assert float(generator_loss(fake)) == -0.0


def test_the_pair_loss_counts_pairs_alone():
    from stainers.multidomain.objectives import pair_loss

    made, wanted = torch.zeros(3, 3, 2, 2), torch.ones(3, 3, 2, 2)
    wanted[1] = 0.25
    assert float(pair_loss(made, wanted, torch.tensor([False, True, False]))) == 0.25
    assert float(pair_loss(made, wanted, torch.tensor([False, False, False]))) == 0.0


def test_unknown_classes_and_pixels_cost_nothing():
    from stainers.multidomain.objectives import cell_class_loss, segment_loss

    logits = torch.tensor([[0.0, 9.0], [0.0, 0.0]])
    assert float(cell_class_loss(logits, torch.tensor([-1, 0]))) == pytest.approx(np.log(2))
    assert float(cell_class_loss(logits, torch.tensor([-1, -1]))) == 0.0
    maps, labels = torch.zeros(1, 4, 2, 2), torch.full((1, 4, 4), 255)
    assert float(segment_loss(maps, labels)) == 0.0
    labels[0, 0, 0] = 3
    assert float(segment_loss(maps, labels)) == pytest.approx(np.log(4))


def test_cycle_and_domain_losses_are_their_equations():
    from stainers.multidomain.objectives import cycle_loss, domain_loss

    assert float(cycle_loss(torch.ones(2, 3, 2, 2), torch.full((2, 3, 2, 2), 0.25))) == 0.75
    assert float(domain_loss(torch.zeros(2, 4), torch.tensor([0, 3]))) == pytest.approx(np.log(4))


# Algorithm 1


def test_the_passes_come_in_the_order_of_algorithm_1(recipe, data):
    run, batch = make_run(recipe), a_batch(recipe, data)
    seen = []
    for step in range(8):
        run.step = step
        names = []
        for name, loss, parts in run.passes(batch):
            assert torch.isfinite(loss)
            names.append((name, *parts))
        seen.append(names)
    judge = ("discriminators", "critic", "penalty", "domain_real")
    free = ("generators", "adversarial", "domain_fake", "cycle")
    assert seen[0] == seen[2] == seen[4] == seen[6] == [judge]
    assert seen[1] == seen[3] == [judge, free]  # phases 1 and 2: an unsupervised StarGAN
    assert (
        seen[5] == seen[7] == [judge, ("classifier", "cell_class"), ("segmenter", "segment"), (*free, "pair")]
    )


def test_where_no_class_and_no_mask_is_known_neither_head_is_moved(recipe, data):
    run, batch = make_run(recipe), a_batch(recipe, data)
    run.step = 7
    run.train_step(batch)  # the optimisers have their momentum
    heads = [run.nets[name] for name in ("classifier", "segmenter")]
    before = [p.detach().clone() for net in heads for p in net.parameters()]
    run.step = 7
    blank = replace(batch, label=torch.full_like(batch.label, -1), mask=torch.full_like(batch.mask, 255))
    assert not {"cell_class", "segment"} & run.train_step(blank).keys()
    assert all(
        torch.equal(a, b) for a, b in zip(before, (p for n in heads for p in n.parameters()), strict=True)
    )


def test_the_first_phase_learns_at_a_tenth_of_the_rate(recipe):
    run = make_run(recipe)
    rates = []
    for run.step in range(8):
        rates.append((run.phase, run.learning_rate()))
    assert [p for p, _ in rates] == [1, 1, 2, 2, 3, 3, 3, 3]
    assert rates[1][1] == pytest.approx(0.1 * rates[2][1])


@pytest.mark.parametrize(
    ("which", "moved"),
    [
        ("discriminators", {"judge"}),
        ("classifier", {"encoder", "classifier"}),
        ("segmenter", {"encoder", "segmenter"}),
        ("generators", {"encoder", "generator"}),
    ],
)
def test_each_pass_moves_only_who_it_should(recipe, data, which, moved):
    run, batch = make_run(recipe), a_batch(recipe, data)
    run.step = 7
    parts = {
        "encoder": run.nets["stain"].encoder,
        "generator": run.nets["stain"].generator,
        "judge": run.nets["judge"],
        "classifier": run.nets["classifier"],
        "segmenter": run.nets["segmenter"],
    }
    before = {k: [p.detach().clone() for p in net.parameters()] for k, net in parts.items()}
    whole = run.passes
    run.passes = lambda b: (p for p in whole(b) if p[0] == which)
    run.train_step(batch)
    changed = {
        k
        for k, net in parts.items()
        if any(not torch.equal(a, b) for a, b in zip(before[k], net.parameters(), strict=True))
    }
    assert changed == moved


def test_the_encoder_is_not_told_the_target(recipe):
    """Domain-agnostic: h is the same whatever the target; the picture is not."""
    run = make_run(recipe)
    net, x = run.averages["stain"], torch.rand(1, 3, 16, 16)
    h = net.encode(x)
    a, b = (net.decode(h, torch.tensor([t])) for t in (0, 1))
    assert a.shape == (1, 3, 16, 16)
    assert not torch.allclose(a, b)
    # DIC as two maps and as three are one picture
    dic = torch.rand(1, 2, 16, 16)
    torch.testing.assert_close(net.encode(dic).code, net.encode(torch.cat([dic, dic[:, :1]], 1)).code)


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(recipe, data, tmp_path):
    from stainers.domain_sets import DomainSampler
    from stainers.domain_training import fit_domains

    def go(folder, **options):
        run = make_run(recipe)
        sampler = DomainSampler(data, recipe.data, recipe.run.seed)
        fit_domains(run, sampler, data, tmp_path / folder, **options)
        return run

    whole = go("whole")
    go("parts", stop_at=4)
    parts = go("parts", resume=True)
    assert whole.step == parts.step == 8
    for name in whole.nets:
        for a, b in zip(
            whole.nets[name].state_dict().values(), parts.nets[name].state_dict().values(), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert (tmp_path / "parts" / "samples-000008.png").is_file()
    assert (tmp_path / "parts" / "best-loss.pt").is_file()
    for table in ("losses.csv", "choice.csv"):
        assert (tmp_path / "parts" / table).read_text() == (tmp_path / "whole" / table).read_text()
    other = make_run(replace(recipe, run=replace(recipe.run, batch=2)))
    with pytest.raises(BadInput, match="another recipe"):
        other.load(tmp_path / "parts" / "checkpoint.pt")
