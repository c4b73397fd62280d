# SPDX-License-Identifier: Apache-2.0
"""ODC's loss against its equation in float64 and torch's weighted mean, its memories against the paper's steps."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from recipes.odc import RECIPE
from suite.draws import Draws
from suite.method import Batch, Progress
from suite.nn.cluster import kmeans, nmi, weighted_cross_entropy
from suite.optim import rate
from suite.progress import Reporter
from suite.testing import build, trainer
from suite.views import CenterCrop, Normalize, View
from tests.equations import Claim, both, randn

CROSS_ENTROPY = Claim("odc", "cross entropy re-weighted by cluster size (section 3.2)", "torch cross_entropy with weights")
TINY = RECIPE.presets["tiny"]
PAPER = "resnet50_8xb64-steplr-440e_in1k"


def naive(logits, labels, every_label, k, power=0.5):
    """Cross entropy in which class c weighs (1/n_c)^power, sample by sample; n_c counts `every_label`."""
    sizes = [sum(int(label == c) for label in every_label.tolist()) for c in range(k)]
    top = bottom = 0.0
    for row, label in zip(logits, labels.tolist(), strict=True):
        weight = (1 / (sizes[label] + 1e-10)) ** power
        top = top - weight * torch.log(torch.exp(row[label]) / torch.exp(row).sum())
        bottom = bottom + weight
    return top / bottom


def problem(n=9, k=5):
    generator = torch.Generator().manual_seed(0)
    return 2 * randn(n, k), torch.randint(k, (n,), generator=generator), torch.randint(k, (60,), generator=generator)


@pytest.mark.parametrize("n", [1, 9, 40])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_loss_and_gradient(ledger, n, power):
    logits, labels, everyone = problem(n)
    sizes = torch.bincount(everyone, minlength=5).double()
    weights = sizes**-power / (sizes**-power).sum()
    x32, x64 = both(logits)
    ours = weighted_cross_entropy(x32, labels, weights.float())
    ledger.agree(CROSS_ENTROPY, ours, naive(x64, labels, everyone, 5, power), [x32], [x64])
    ledger.independent(CROSS_ENTROPY, ours, F.cross_entropy(x32, labels, weights.float()))


def started(images, **changes):
    """A trainer whose memories are filled, and the order of its first epoch."""
    some = trainer(RECIPE, replace(TINY, **changes), images)
    return some, some.method.on_epoch_start(some._progress(0), some.data)


def test_memories_start_from_one_kmeans_of_unaugmented_images(digits):
    some, _ = started(digits)
    method = some.method
    pixels = torch.from_numpy(digits.array).permute(0, 3, 1, 2)
    with torch.no_grad():
        method.eval()
        x = View((CenterCrop(32), Normalize()))(pixels, Draws(0, 0, torch.arange(len(digits))))
        features = F.normalize(method.neck(method.backbone(x)), dim=1)
    torch.testing.assert_close(method.memory.features, features, rtol=1e-4, atol=1e-5)
    found = kmeans(features, TINY.clusters, iterations=TINY.iterations).labels
    assert nmi(method.memory.labels, found) > 0.9  # a few pictures may lie between two clusters
    for c in range(TINY.clusters):
        mean = method.memory.features[method.memory.labels == c].mean(0)
        torch.testing.assert_close(method.memory.centroids[c], mean, rtol=1e-4, atol=1e-5)


def test_later_epochs_keep_the_memories_and_draw_with_replacement(digits):
    some, order = started(digits)
    before = {name: value.clone() for name, value in some.method.state_dict().items()}
    later = some.method.on_epoch_start(Progress(1, 16, 16, 32), some.data)
    assert all(torch.equal(value, before[name]) for name, value in some.method.state_dict().items())
    for drawn in (order, later):
        assert len(drawn) == len(digits) and drawn.min() >= 0 and drawn.max() < len(digits)
        share = len(drawn.unique()) / len(digits)
        assert share == pytest.approx(1 - 1 / math.e, abs=0.06)
    assert not torch.equal(order, later)
    assert torch.equal(order, some.method.on_epoch_start(some._progress(0), some.data))


def test_a_step_learns_the_old_labels_and_then_moves_its_images(ledger, digits):
    some, order = started(digits)
    method, batch = some.method.eval(), next(some.loader.epoch(0, order))
    memory = method.memory
    labels, old, centroids = memory.labels.clone(), memory.features.double(), memory.centroids.double()
    with torch.no_grad():
        f = method.neck(method.backbone(batch.views[0]))
        logits = method.head(f).double()
    found = method(batch)
    expected = naive(logits, labels[batch.index], labels, TINY.clusters)
    ledger.agree(CROSS_ENTROPY, found["loss"], expected)
    assert found["loss"].item() == pytest.approx(math.log(TINY.clusters), rel=0.1)
    last = {int(i): n for n, i in enumerate(batch.index)}  # of an image drawn twice the last view counts
    moved = 0
    for i, n in last.items():
        new = F.normalize(0.5 * old[i] + 0.5 * F.normalize(f[n].double(), dim=0), dim=0)
        torch.testing.assert_close(memory.features[i].double(), new, rtol=1e-4, atol=1e-5)
        scores = centroids @ new
        assert scores[memory.labels[i]].item() == pytest.approx(scores.max().item(), abs=1e-5)
    for i in batch.index.tolist():
        moved += int(memory.labels[i] != labels[i])
    assert found["changed"].item() == pytest.approx(100 * moved / len(batch.index))
    others = torch.ones(len(labels), dtype=torch.bool).index_fill(0, batch.index, False)
    assert torch.equal(memory.labels[others], labels[others])
    torch.testing.assert_close(memory.centroids.double(), centroids)


def test_loss_reaches_head_neck_and_backbone_but_not_the_memories(digits):
    some, order = started(digits)
    some.method(next(some.loader.epoch(0, order)))["loss"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in some.method.parameters())
    assert not any(buffer.requires_grad for buffer in some.method.buffers())


def after(method, steps):
    """The method after the given step numbers' `after_step`."""
    for step in steps:
        method.after_step(Progress(0, step, 100, 100))


def test_centroids_follow_every_tenth_step(digits):
    some, _ = started(digits, centroids_every=10, minimum=0)
    memory = some.method.memory
    memory.features.copy_(memory.features.roll(1, 0))
    before = memory.centroids.clone()
    after(some.method, range(9))
    assert torch.equal(memory.centroids, before)
    after(some.method, [9])
    means = torch.stack([memory.features[memory.labels == c].mean(0) for c in range(TINY.clusters)])
    torch.testing.assert_close(memory.centroids, means, rtol=1e-4, atol=1e-5)


def test_small_clusters_are_dissolved_in_every_step(digits):
    some, _ = started(digits, minimum=20)
    memory = some.method.memory
    memory.labels[memory.labels == 3] = 0
    memory.labels[:5] = 3
    after(some.method, [0])
    sizes = memory.sizes()
    assert sizes.sum() == len(digits) and sizes[3] >= 20


def test_a_small_cluster_gives_its_members_to_normal_ones(digits):
    some, _ = started(digits, minimum=20)
    memory = some.method.memory
    memory.labels[memory.labels == 3] = 0
    memory.labels[:5] = 3
    centroids = memory.centroids.clone()
    normal = [c for c in range(TINY.clusters) if int((memory.labels == c).sum()) >= 20]
    wanted = [max(normal, key=lambda c, i=i: float(centroids[c] @ memory.features[i])) for i in range(5)]
    memory._split_largest = lambda *_: None  # seen before the refill
    after(some.method, [0])
    assert memory.labels[:5].tolist() == wanted


def test_memory_survives_a_checkpoint(digits):
    some, order = started(digits)
    some.method(next(some.loader.epoch(0, order)))
    other = build(RECIPE, TINY, digits)
    other.load_state_dict(some.method.state_dict())
    assert bool(other.memory.filled)
    for name, value in some.method.memory.named_buffers():
        assert torch.equal(value, getattr(other.memory, name))


def test_the_neck_is_the_published_one_and_the_classifier_has_no_momentum(digits):
    config = RECIPE.presets[PAPER]
    method = build(RECIPE, replace(config, arch="resnet18", arch_options={}, clusters=50), digits)
    first, norm, _, drop, last, act = method.neck
    shape = (first.in_features, first.out_features, last.out_features, method.head.out_features)
    assert shape == (method.backbone.dim, 512, 256, 50)
    assert (norm.momentum, norm.affine, drop.p) == (0.001, False, 0.5) and isinstance(act, nn.ReLU)
    assert method.head.weight.std().item() == pytest.approx(0.01, rel=0.05) and not method.head.bias.any()
    some = trainer(RECIPE, replace(TINY, max_steps=2), digits)
    some.run(Reporter(), "test")
    held = {id(p) for p, state in some.optimizer.state.items() if state.get("momentum_buffer") is not None}
    head = {id(p) for p in some.method.head.parameters()}
    assert held and not held & head


def test_half_precision_does_not_blur_the_memory(digits):
    some, order = started(digits)
    method, batch = some.method, next(some.loader.epoch(0, order))
    with torch.autocast("cpu", torch.bfloat16):
        found = method(Batch(batch.views, None, batch.index))
    assert found["loss"].dtype == torch.float32 and found["features"].dtype == torch.float32
    norms = method.memory.features[batch.index].norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=1e-5, atol=1e-5)


def test_the_paper_preset_drops_the_rate_at_400_and_orders_its_augmentations():
    config = RECIPE.presets[PAPER]
    rates = [rate(config.optim, 2502 * epoch, 2502, 2502 * 440) for epoch in (0, 399, 400, 439)]
    assert rates == pytest.approx([0.06, 0.06, 0.024, 0.024])
    (view,) = RECIPE.views(config)
    names = [type(op).__name__ for op in view.ops]
    assert names == ["RandomResizedCrop", "HorizontalFlip", "Rotate", "ColorJitter", "Grayscale", "Normalize"]
    assert (view.ops[0].scale, view.ops[2].degrees, view.ops[3].p, view.ops[4].p) == ((0.08, 1.0), 2.0, 1.0, 0.2)


def _process(number, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    logits, labels, _ = problem(12)
    x = logits.chunk(2)[number].clone().requires_grad_()
    loss = weighted_cross_entropy(x, labels.chunk(2)[number], torch.arange(1.0, 6.0, dtype=torch.float64))
    loss.backward()
    torch.save((loss.detach(), x.grad / 2), f"{folder}/{number}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_weigh_over_the_global_batch(tmp_path):
    torch.multiprocessing.spawn(_process, (tmp_path,), nprocs=2)
    parts = [torch.load(tmp_path / f"{number}.pt", weights_only=True) for number in range(2)]
    logits, labels, _ = problem(12)
    x = logits.clone().requires_grad_()
    loss = weighted_cross_entropy(x, labels, torch.arange(1.0, 6.0, dtype=torch.float64))
    loss.backward()
    torch.testing.assert_close(sum(part for part, _ in parts) / 2, loss.detach())
    torch.testing.assert_close(torch.cat([gradient for _, gradient in parts]), x.grad)
