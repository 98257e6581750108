"""The disentangled stainer keeps to thesis chapter 6: AdaIN, SPADE, codes, losses; and its norms settle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.domain_scenes import domain_set

torch = pytest.importorskip("torch")


class TinyOutline(torch.nn.Module):
    """Stands in for the segmenter's network."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, 1, 1)

    def forward(self, x):
        return self.conv(x)


@pytest.fixture(scope="module")
def recipe():
    from stainers.disentangled.networks import DisentangledNetwork
    from stainers.disentangled.training import DisentangledRecipe
    from stainers.domain_sets import DomainOptions
    from stainers.gan_training import RunOptions

    torch.set_num_threads(1)
    network = DisentangledNetwork(
        width=4, blocks=1, style=6, structure=3, noise=4, hidden=4, judge_width=4, judge_layers=2
    )
    return DisentangledRecipe(
        generator=network,
        data=DomainOptions(crop_px=16, context_px=24),
        run=RunOptions(steps=4, batch=4, checkpoint_every=2, sample_every=4, choose_every=2, seed=3),
    )


def make_run(recipe):
    from stainers.disentangled.objectives import FrozenSegmenter
    from stainers.disentangled.training import DisentangledRun

    torch.manual_seed(11)
    outline = FrozenSegmenter(TinyOutline())
    return DisentangledRun(recipe, outline, recipe.run.steps, torch.device("cpu"))


@pytest.fixture(scope="module")
def batch(recipe):
    from stainers.domain_sets import DomainSampler
    from stainers.domain_training import to_domain_batch

    sampler = DomainSampler(domain_set(), recipe.data, 3)
    return to_domain_batch(sampler.batch(0, 8), torch.device("cpu"))


# norms


def test_adain_gives_each_map_the_mean_and_deviation_of_its_style():
    from stainers.norms import StyledNorm

    torch.manual_seed(0)
    norm = StyledNorm(5, 6).train()
    x, style = 3 + 7 * torch.randn(2, 5, 9, 9), torch.randn(2, 6)
    scale, shift = norm.affine(style).chunk(2, dim=1)
    y = norm(x, style)
    torch.testing.assert_close(y.mean(dim=(2, 3)), shift, atol=1e-4, rtol=0)
    torch.testing.assert_close(y.std(dim=(2, 3), unbiased=False), (1 + scale).abs(), atol=1e-3, rtol=0)


def test_spade_modulates_by_the_structure_map():
    from stainers.norms import SpatialNorm

    torch.manual_seed(0)
    norm = SpatialNorm(4, 2, 3).eval()
    x = torch.zeros(1, 4, 16, 16)
    structure = torch.zeros(1, 2, 16, 16)
    flat = norm(x, structure)
    structure[:, :, 8:] = 5.0
    shaped = norm(x, structure)
    # an input without structure of its own: all that differs comes from the map, and only where it differs
    torch.testing.assert_close(shaped[:, :, :6], flat[:, :, :6])
    assert (shaped[:, :, 10:] - flat[:, :, 10:]).abs().max() > 0.1
    small = norm(x, structure[:, :, ::2, ::2])
    assert small.shape == x.shape


def test_a_settled_norm_is_a_fixed_scale_and_shift():
    from stainers.norms import SettledNorm, settle

    torch.manual_seed(0)
    norm = SettledNorm(3, momentum=0.2).train()
    x = 2 + 3 * torch.randn(4, 3, 16, 16)
    for _ in range(60):
        free = norm(x)
    torch.testing.assert_close(free.mean(dim=(2, 3)), torch.zeros(4, 3), atol=1e-4, rtol=0)
    settle(norm)
    fixed = norm(x)
    assert fixed.mean().abs() < 0.05
    assert (fixed.std() - 1).abs() < 0.05
    far = x.clone()
    far[:, :, 8:] += 100
    torch.testing.assert_close(norm(far)[:, :, :8], fixed[:, :, :8], rtol=0, atol=0)
    torch.testing.assert_close(norm.eval()(x), fixed)
    settle(norm, False)
    assert not torch.allclose(norm.train()(far)[:, :, :8], fixed[:, :, :8])


# losses


def test_style_cycle_and_diversity_are_their_equations():
    from stainers.disentangled.objectives import cycle_loss, diversity_loss, style_loss

    wanted = torch.zeros(2, 4)
    assert float(style_loss(wanted, wanted + 1, wanted - 0.5)) == 1.5
    x = torch.zeros(1, 3, 2, 2)
    assert float(cycle_loss(x, x + 0.25, x + 0.5, x - 1)) == 1.75
    a = torch.full((1, 3, 2, 2), 0.75, requires_grad=True)
    b = torch.full((1, 3, 2, 2), 0.25, requires_grad=True)
    loss = diversity_loss((a, b), (a, b))
    assert float(loss.detach()) == -1.0  # maximised: the further apart, the lower
    loss.backward()
    assert a.grad is not None
    assert b.grad is None


def test_the_structure_loss_of_another_structure_counts_the_surroundings_alone():
    from stainers.disentangled.objectives import structure_loss

    labels = torch.tensor([[[0, 1], [2, 3]]])
    logits = torch.zeros(1, 4, 2, 2)
    logits[0, 0, 1] = 50.0  # cytoplasm and nucleus taken for background
    assert float(structure_loss(logits, labels)) == pytest.approx((2 * np.log(4) + 2 * 50) / 4)
    assert float(structure_loss(logits, labels, surroundings_only=True)) == pytest.approx(np.log(4))
    assert float(structure_loss(logits, torch.full((1, 2, 2), 255))) == 0.0


def test_gradients_pass_through_the_segmenter_and_none_reach_it():
    from stainers.disentangled.objectives import FrozenSegmenter

    outline = FrozenSegmenter(TinyOutline())
    outline.train()
    assert not outline.network.training
    picture = torch.rand(1, 3, 8, 8, requires_grad=True)
    outline(picture).sum().backward()
    assert picture.grad.abs().sum() > 0
    assert all(p.grad is None for p in outline.parameters())


def test_a_stain_is_outlined_and_dic_is_not(recipe, batch):
    run = make_run(recipe)
    made = torch.rand_like(batch.picture)
    some = run.outlined(batch, made, made)
    none = run.outlined(replace(batch, target=torch.full_like(batch.target, 3)), made, made)
    assert float(some) > 0
    assert float(none) == 0


# codes


def test_style_comes_from_the_head_of_the_target_and_structure_from_the_input(recipe):
    net = make_run(recipe).averages["stain"]
    noise = torch.randn(3, 4)
    codes = [net.style_mapping(noise, torch.full((3,), d)) for d in range(4)]
    assert not torch.allclose(codes[0], codes[1])
    assert net.structure_mapping(noise, (2, 5)).shape == (3, 3, 2, 5)
    x = torch.rand(1, 3, 16, 16)
    latent = net.encode(x)
    a, b = (net.generator(latent.background, codes[0][:1], latent.structure + k) for k in (0, 3))
    assert not torch.allclose(a, b)


def test_the_typical_style_of_a_target_is_what_stains(recipe):
    net = make_run(recipe).averages["stain"]
    net.remember_styles()
    assert net.styles.abs().sum() > 0
    x = torch.rand(2, 2, 16, 16)
    out = net(x, torch.tensor([0, 2]))
    assert out.shape == (2, 3, 16, 16)
    torch.testing.assert_close(out[1:], net(x[1:], torch.tensor([2])))


def test_half_of_the_disturbed_codes_differ_in_structure_and_half_in_style(recipe):
    from stainers.confidence import NoiseOptions

    net = make_run(recipe).averages["stain"]
    net.remember_styles()
    latent = net.encode(torch.rand(1, 3, 16, 16))
    noisy = latent.disturbed(
        torch.ones(1, 1, 16, 16), NoiseOptions(samples=5, alpha=2.0), torch.Generator().manual_seed(0)
    )
    assert all(len(part) == 5 for part in noisy)
    structure = (noisy.structure - latent.structure).flatten(1).std(dim=1)
    style = (noisy.styles - latent.styles).flatten(1).abs().amax(dim=1)
    assert (structure[:3] > 0).all()
    assert (structure[3:] == 0).all()
    assert (style[:3] == 0).all()
    assert (style[3:] > 0).all()
    many = latent.disturbed(
        torch.ones(1, 1, 16, 16), NoiseOptions(samples=400, alpha=2.0), torch.Generator().manual_seed(1)
    )
    found = (many.structure[:200] - latent.structure).std() / latent.structure.std(unbiased=False)
    assert float(found) == pytest.approx(2.0, rel=0.1)


# training


@pytest.mark.parametrize(("which", "moved"), [("discriminators", "judge"), ("generators", "stain")])
def test_each_pass_moves_only_who_it_should(recipe, batch, which, moved):
    run = make_run(recipe)
    before = {k: [p.detach().clone() for p in net.parameters()] for k, net in run.nets.items()}
    frozen = [p.clone() for p in run.outline.parameters()]
    whole = run.passes
    run.passes = lambda b: (p for p in whole(b) if p[0] == which)
    run.train_step(batch)
    changed = {
        k: [not torch.equal(a, b) for a, b in zip(before[k], net.parameters(), strict=True)]
        for k, net in run.nets.items()
    }
    assert {k for k, v in changed.items() if any(v)} == {moved}
    if moved == "stain":  # every encoder and both mapping networks learn
        named = [n.split(".")[0] for n, _ in run.nets["stain"].named_parameters()]
        touched = {n for n, c in zip(named, changed["stain"], strict=True) if c}
        assert touched == set(named)
    assert all(torch.equal(a, b) for a, b in zip(frozen, run.outline.parameters(), strict=True))


def test_the_adversarial_loss_has_the_three_kinds_of_pictures(recipe, batch):
    from stainers.disentangled.training import three_kinds

    run = make_run(recipe)
    code = run.codes(batch)
    made, other = three_kinds(run.nets["stain"], code), three_kinds(run.nets["stain"], code, 1)
    net = run.nets["stain"]
    torch.testing.assert_close(made[1], net.generator(code.background, code.style, code.structures[0]))
    torch.testing.assert_close(made[2], net.generator(code.background, code.styles[0], code.structure))
    assert all(not torch.allclose(a, b) for a, b in zip(made, other, strict=True))


def test_no_head_of_the_judge_gains_by_a_verdict_that_is_the_same_for_all_pictures(recipe, batch):
    """Else it runs away wherever a batch asks a domain of it more often than it holds one."""
    run = make_run(recipe)
    uneven = replace(batch, target=torch.zeros_like(batch.target), paired=torch.zeros_like(batch.paired))
    run.random.manual_seed(1)
    before = run.judged(uneven)[1]["critic"]
    with torch.no_grad():
        run.nets["judge"].heads.bias += torch.tensor([100.0, -50.0, 0.0, 7.0])
    run.random.manual_seed(1)
    torch.testing.assert_close(run.judged(uneven)[1]["critic"], before, atol=1e-3, rtol=0)


def test_a_made_picture_is_weighed_against_a_real_one_of_its_target(batch):
    reals = batch.real_targets()
    for i, target in enumerate(batch.target.tolist()):
        if batch.paired[i]:
            assert torch.equal(reals[i], batch.partner[i])
        else:
            assert any(
                torch.equal(reals[i], batch.picture[j]) for j in (batch.domain == target).nonzero()[:, 0]
            )
    alone = replace(batch, domain=torch.full_like(batch.domain, 3), target=torch.zeros_like(batch.target))
    with pytest.raises(ValueError, match="target domains"):
        replace(alone, paired=torch.zeros_like(batch.paired)).real_targets()


def test_statistics_are_settled_in_the_last_part(recipe, batch):
    from stainers.norms import SettledNorm

    run = make_run(recipe)
    states = []
    for _ in range(4):
        run.train_step(batch)
        states.append({m.settled for m in run.nets["stain"].modules() if isinstance(m, SettledNorm)})
    assert states == [{False}, {False}, {True}, {True}]


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(recipe, tmp_path):
    from stainers.domain_sets import DomainSampler
    from stainers.domain_training import fit_domains

    data = domain_set()

    def go(folder, **options):
        run = make_run(recipe)
        sampler = DomainSampler(data, recipe.data, recipe.run.seed)
        fit_domains(run, sampler, data, tmp_path / folder, **options)
        return run

    whole = go("whole")
    go("parts", stop_at=2)
    parts = go("parts", resume=True)
    for name in whole.nets:
        for a, b in zip(
            whole.nets[name].state_dict().values(), parts.nets[name].state_dict().values(), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert (tmp_path / "parts" / "samples-000004.png").is_file()


def test_its_confidence_takes_one_encoder_pass_and_k_plus_one_decoder_passes(recipe):
    """Equations 6.6 and 6.7 through the same door as chapter 7."""
    from stainers.confidence import NoiseOptions, disturbed_outputs, output_features
    from stainers.picture_stainer import DicPictures

    net = make_run(recipe).averages["stain"]
    net.remember_styles()
    counts = {"encode": 0, "decode": 0}
    whole_encode, whole_decode = net.encode, net.decode

    def encode(x):
        counts["encode"] += len(x)
        return whole_encode(x)

    def decode(latent, target):
        counts["decode"] += len(target)
        return whole_decode(latent, target)

    net.encode, net.decode = encode, decode
    options = NoiseOptions(samples=6, alpha=3.0, beta=7.0)
    x = torch.randn(1, 2, 32, 32)
    primary, others = disturbed_outputs(DicPictures(net), x, 1, options)
    assert counts == {"encode": 1, "decode": 7}
    assert others.shape == (6, *primary.shape)
    assert all(not torch.allclose(o, primary, atol=1e-5) for o in others)
    again = disturbed_outputs(DicPictures(net), x, 1, options)[1]
    torch.testing.assert_close(others, again, rtol=0, atol=0)
    found = output_features(primary.numpy(), others.numpy(), np.zeros((32, 32)))
    assert 0 < found["mutual_information"] <= found["output_entropy"] + 1e-9
    silent = disturbed_outputs(DicPictures(net), x, 1, NoiseOptions(samples=2, alpha=0.0, beta=0.0))[1]
    torch.testing.assert_close(silent[0], primary)
