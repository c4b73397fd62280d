# SPDX-License-Identifier: Apache-2.0
"""NPID against the paper's equations in float64 and, for the sampled softmax, lightly's NT-Xent with a memory bank."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from recipes.npid import RECIPE, noise_contrastive, sampled_softmax, softmax_over_all
from suite.optim import rate
from suite.testing import build, trainer
from tests.equations import Claim, both, lightly_info_nce, units

SAMPLED = Claim("npid", "eq. 2 over drawn negatives", "lightly NTXentLoss with a memory bank")
SOFTMAX = Claim("npid", "eq. 2 and 3: softmax over all images")
NCE = Claim("npid", "eq. 4, 6 and 7: noise-contrastive estimation")
TINY = RECIPE.presets["tiny"]
PAPER = "resnet50_8xb32-steplr-200e_in1k"


def naive_softmax(f, memory, positive, others, tau):
    """Eq. 2 and 3 image by image, the sum in the denominator over the positive and `others`, indices of the memory."""
    total = 0.0
    for k in range(len(f)):
        own = torch.exp(memory[positive[k]] @ f[k] / tau)
        total = total - torch.log(own / (own + sum(torch.exp(memory[j] @ f[k] / tau) for j in others[k])))
    return total / len(f)


def naive_nce(f, memory, positive, others, tau, z):
    """Eq. 4, 6 and 7 image by image."""
    n, m = len(memory), len(others[0])

    def h(j, k):
        p = torch.exp(memory[j] @ f[k] / tau) / z
        return p / (p + m / n)

    total = 0.0
    for k in range(len(f)):
        total = total - torch.log(h(positive[k], k)) - sum(torch.log(1 - h(j, k)) for j in others[k])
    return total / len(f)


def problem(n=4, size=20, m=7, d=6):
    generator = torch.Generator().manual_seed(5)
    return units(n, d), units(size, d, seed=1), torch.randperm(size, generator=generator)[:n], torch.randint(
        size, (n, m), generator=generator
    )  # fmt: skip


def logits(f, memory, positive, others, tau):
    return (f * memory[positive]).sum(1, keepdim=True) / tau, torch.einsum("nd,nmd->nm", f, memory[others]) / tau


@pytest.mark.parametrize(("n", "size", "m"), [(4, 20, 7), (1, 2, 1), (6, 9, 40)])
@pytest.mark.parametrize("tau", [0.07, 0.5])
def test_sampled_softmax(ledger, n, size, m, tau):
    f, memory, positive, others = problem(n, size, m)
    f32, f64 = both(f)
    ours = sampled_softmax(*logits(f32, memory.float(), positive, others, tau))
    ledger.agree(SAMPLED, ours, naive_softmax(f64, memory, positive, others.tolist(), tau), [f32], [f64])


@pytest.mark.parametrize(("n", "size"), [(4, 20), (1, 2), (9, 9)])
@pytest.mark.parametrize("tau", [0.07, 0.1, 1.0])
def test_softmax_over_all_other_images_is_equation_2(ledger, n, size, tau):
    f, memory, positive, _ = problem(n, size)
    f32, f64 = both(f)
    others = [[j for j in range(size) if j != int(p)] for p in positive]
    ours = softmax_over_all(f32, memory.float(), positive, tau)
    ledger.agree(SOFTMAX, ours, naive_softmax(f64, memory, positive, others, tau), [f32], [f64])


@pytest.mark.parametrize(("n", "size", "m"), [(4, 20, 7), (1, 2, 1), (6, 9, 40)])
@pytest.mark.parametrize(("tau", "z"), [(0.07, 3e4), (0.5, 25.0)])
def test_noise_contrastive_estimation(ledger, n, size, m, tau, z):
    f, memory, positive, others = problem(n, size, m)
    f32, f64 = both(f)
    ours = noise_contrastive(*logits(f32, memory.float(), positive, others, tau), torch.tensor(z).log(), size)
    ledger.agree(NCE, ours, naive_nce(f64, memory, positive, others.tolist(), tau, z), [f32], [f64])


def step(digits, **changes):
    """A method without batch statistics, its first batch, its features, and the memory and negatives that its loss uses."""
    some = trainer(RECIPE, replace(TINY, **changes), digits)
    method, batch = some.method.eval(), next(some.loader.epoch(0))
    with torch.no_grad():
        f = F.normalize(method.fc(method.backbone(batch.views[0])), dim=1)
    method.on_step_start(some._progress(0))
    drawn = method.draw(batch.index) if method.settings.negatives else None
    method.on_step_start(some._progress(0))
    return some, method, batch, f, method.bank.features.clone(), drawn


def test_the_method_computes_its_equations(ledger, digits):
    _, method, batch, f, memory, drawn = step(digits)
    args = f.double(), memory.double(), batch.index
    ledger.agree(SAMPLED, method(batch)["loss"], naive_softmax(*args, drawn.tolist(), TINY.temperature))
    assert not (drawn == batch.index[:, None]).any()  # the preset ensures negatives

    _, method, batch, f, memory, _ = step(digits, negatives=0)
    scores = f.double() @ memory.double().T / TINY.temperature
    expected = (scores.logsumexp(1) - scores.gather(1, batch.index[:, None])[:, 0]).mean()
    ledger.agree(SOFTMAX, method(batch)["loss"], expected)


def test_the_constant_z_comes_from_the_first_batch_and_stays(ledger, digits):
    some, method, batch, f, memory, drawn = step(digits, loss="nce", ensure_negatives=False)
    scores = torch.einsum("nd,nmd->nm", f.double(), memory.double()[drawn]) / TINY.temperature
    z = scores.exp().mean() * len(digits)  # eq. 8
    expected = naive_nce(f.double(), memory.double(), batch.index, drawn.tolist(), TINY.temperature, z)
    ledger.agree(NCE, method(batch)["loss"], expected)
    assert method.z.item() == pytest.approx(z.item(), rel=1e-5) and "z" in method.state_dict()
    method.after_step(some._progress(0))
    method(batch)
    assert method.z.item() == pytest.approx(z.item(), rel=1e-5)


def test_proximal_term_is_the_squared_distance_to_the_memory(digits):
    plain, pulled = (step(digits, proximal=p) for p in (0.0, 3.0))
    f, memory, batch = plain[3], plain[4], plain[2]
    distance = (f - memory[batch.index]).square().sum(1).mean()
    difference = pulled[1](batch)["loss"] - plain[1](batch)["loss"]
    assert difference.item() == pytest.approx(3 * distance.item(), rel=1e-4)


@pytest.mark.parametrize("tau", [0.07, 0.5])
def test_against_an_independent_implementation(ledger, tau):
    """Lightly shares its memory between the queries, so every image gets the same negatives here."""
    f, memory, positive, _ = problem(8, 30, d=16)
    f, memory = f.float(), memory.float()
    ours = sampled_softmax(*logits(f, memory, positive, torch.arange(10, 30).expand(8, 20), tau))
    ledger.independent(SAMPLED, ours, lightly_info_nce(f, memory[positive], memory[10:], tau))


def test_loss_of_equal_similarities_is_the_logarithm_of_the_choices():
    zeros = torch.zeros(3, 1), torch.zeros(3, 65536)
    assert sampled_softmax(*zeros).item() == pytest.approx(math.log(65537), rel=1e-6)
    # With Z = n every image has probability 1/n, so h = 1 / (1 + m).
    loss = noise_contrastive(torch.zeros(3, 1), torch.zeros(3, 99), torch.tensor(50.0).log(), 50)
    assert loss.item() == pytest.approx(math.log(100) + 99 * math.log(100 / 99), rel=1e-5)


def test_losses_survive_extreme_similarities():
    for positive, negative in ((1.0, -1.0), (-1.0, 1.0)):
        pos = torch.full((2, 1), positive / 0.01).requires_grad_()
        neg = torch.full((2, 5), negative / 0.01)
        for loss in (sampled_softmax(pos, neg), noise_contrastive(pos, neg, torch.tensor(9.0), 10)):
            (gradient,) = torch.autograd.grad(loss, pos)
            assert torch.isfinite(loss) and torch.isfinite(gradient).all()


def test_memory_follows_after_the_step(digits):
    some, method, batch, f, before, _ = step(digits)
    method(batch)["loss"].backward()
    assert torch.equal(method.bank.features, before)
    method.after_step(some._progress(0))
    expected = F.normalize(TINY.momentum * before[batch.index] + (1 - TINY.momentum) * f, dim=1)
    torch.testing.assert_close(method.bank.features[batch.index], expected)
    others = torch.ones(len(before), dtype=torch.bool).index_fill(0, batch.index, False)
    assert torch.equal(method.bank.features[others], before[others]) and not method.seen


def test_negatives_depend_on_the_step_alone(digits):
    some, method, batch, *_, drawn = step(digits)
    assert torch.equal(method.draw(batch.index), drawn)
    some.step = 1
    method.on_step_start(some._progress(0))
    assert not torch.equal(method.draw(batch.index), drawn)


def _process(number, folder, index):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    from suite.data import load

    method = build(RECIPE, TINY, load("digits", "train"))
    method.generator = torch.Generator().manual_seed(3)
    torch.save(method.draw(index.chunk(2)[number]), f"{folder}/{number}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_draw_what_one_draws(tmp_path, cache):
    from suite.data import load

    index = torch.arange(3, 11)
    torch.multiprocessing.spawn(_process, (tmp_path, index), nprocs=2)
    method = build(RECIPE, TINY, load("digits", "train"))
    method.generator = torch.Generator().manual_seed(3)
    parts = [torch.load(tmp_path / f"{number}.pt", weights_only=True) for number in range(2)]
    assert torch.equal(torch.cat(parts), method.draw(index))


def test_the_head_is_linear_and_the_paper_preset_steps_at_120_and_160():
    config = RECIPE.presets[PAPER]
    rates = [rate(config.optim, 5004 * epoch, 5004, 5004 * 200) for epoch in (0, 119, 120, 159, 160, 199)]
    assert rates == pytest.approx([0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003])
    (view,) = RECIPE.views(config)
    names = [type(op).__name__ for op in view.ops]
    assert names == ["RandomResizedCrop", "Grayscale", "ColorJitter", "HorizontalFlip", "Normalize"]
    assert (view.ops[0].scale, view.ops[1].p, view.ops[2].p, view.ops[3].p) == ((0.2, 1.0), 0.2, 1.0, 0.5)
