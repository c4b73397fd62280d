# SPDX-License-Identifier: Apache-2.0
"""DeepCluster: the loss in float64 and against torch's weighted mean, and what happens between epochs."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from recipes import deepcluster
from recipes.deepcluster import RECIPE
from suite.draws import Draws
from suite.errors import UsageError
from suite.method import Progress
from suite.nn.cluster import kmeans, nmi, pca_whiten, weighted_cross_entropy
from suite.nn.sobel import Sobel
from suite.optim import rate
from suite.progress import Reporter
from suite.testing import build, trainer
from suite.views import CenterCrop, Normalize, View
from tests.equations import Claim, both, randn

CROSS_ENTROPY = Claim("deepcluster", "eq. 1 with the clusters' weights (section 3.3)", "torch cross_entropy with weights")
TINY = RECIPE.presets["tiny"]
PAPER = "sobel_resnet50_8xb64-steplr-200e_in1k"


def naive(logits, labels, weights):
    """Weighted mean of -log of the softmax, sample by sample."""
    top = bottom = 0.0
    for row, label in zip(logits, labels.tolist(), strict=True):
        top = top - weights[label] * torch.log(torch.exp(row[label]) / torch.exp(row).sum())
        bottom = bottom + weights[label]
    return top / bottom


def problem(n=9, k=5):
    generator = torch.Generator().manual_seed(0)
    return 2 * randn(n, k), torch.randint(k, (n,), generator=generator), torch.rand(k, generator=generator).double() + 0.1


@pytest.mark.parametrize("n", [1, 9, 40])
@pytest.mark.parametrize("even", [True, False])
def test_loss_and_gradient(ledger, n, even):
    logits, labels, weights = problem(n)
    weights = torch.ones(5, dtype=torch.float64) if even else weights.float().double()
    x32, x64 = both(logits)
    ours = weighted_cross_entropy(x32, labels, weights.float())
    ledger.agree(CROSS_ENTROPY, ours, naive(x64, labels, weights), [x32], [x64])
    ledger.independent(CROSS_ENTROPY, ours, F.cross_entropy(x32, labels, weights.float()))


def started(images, **changes):
    """A trainer whose method has clustered once, and the order of its first epoch."""
    some = trainer(RECIPE, replace(TINY, **changes), images)
    return some, some.method.on_epoch_start(some._progress(0), some.data)


def test_labels_are_kmeans_of_whitened_features_of_unaugmented_images(digits):
    some, _ = started(digits)
    method = some.method
    view = View((CenterCrop(32), Normalize()))
    pixels = torch.from_numpy(digits.array).permute(0, 3, 1, 2)
    with torch.no_grad():
        features = method.backbone.eval()(view(pixels, Draws(0, 0, torch.arange(len(digits)))))
    seed = int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(0)))  # of epoch 0
    found = kmeans(pca_whiten(features, TINY.pca), TINY.clusters, seed=seed, iterations=TINY.iterations).labels
    assert nmi(method.labels, found) > 0.9  # a few pictures may lie between two clusters
    assert method.labels.unique().numel() == TINY.clusters


def test_clustering_leaves_the_network_as_it_was(digits):
    some = trainer(RECIPE, TINY, digits)
    some.method.train()
    before = some.method.backbone.sha256()
    some.method.on_epoch_start(some._progress(0), some.data)
    assert some.method.backbone.sha256() == before and some.method.backbone.training


def test_every_epoch_clusters_anew_with_a_new_classifier_and_repeats_itself(digits):
    some, order = started(digits)
    method = some.method
    first = {name: value.clone() for name, value in method.state_dict().items() if not name.startswith("backbone.")}
    assert method.head.weight.std().item() == pytest.approx(0.01, rel=0.1) and not method.head.bias.any()
    with torch.no_grad():
        method.head.weight.add_(1.0)
    again = method.on_epoch_start(some._progress(0), some.data)
    assert torch.equal(again, order) and torch.equal(method.labels, first["labels"])
    assert torch.equal(method.head.weight, first["head.weight"]) and method.stability.item() == pytest.approx(1.0)
    later = method.on_epoch_start(Progress(1, 16, 16, 32), some.data)
    assert not torch.equal(later, order) and not torch.equal(method.head.weight, first["head.weight"])
    assert method.stability.item() == pytest.approx(nmi(first["labels"], method.labels))


def test_clusters_come_up_equally_often(digits):
    some, order = started(digits)
    counts = Counter(some.method.labels[order].tolist())
    share = len(digits) // TINY.clusters + 1
    assert len(order) == len(digits) and max(counts.values()) <= share
    assert sum(share - counts[c] for c in range(TINY.clusters)) == share * TINY.clusters - len(digits)
    assert torch.equal(some.method.weights, torch.full((TINY.clusters,), 1 / TINY.clusters))
    assert started(digits, uniform=False)[1] is None


def test_reweighting_is_an_inverse_root_of_the_size(digits):
    some, _ = started(digits, uniform=False, reweight=0.5)
    sizes = torch.bincount(some.method.labels, minlength=TINY.clusters).double()
    expected = (sizes + 1e-10) ** -0.5
    torch.testing.assert_close(some.method.weights.double(), expected / expected.sum(), rtol=1e-5, atol=0)


def test_the_method_predicts_its_labels(ledger, digits):
    some, order = started(digits)
    method, batch = some.method, next(some.loader.epoch(0, order))
    found = method.eval()(batch)
    with torch.no_grad():
        logits = method.head(method.backbone(batch.views[0])).double()
    expected = naive(logits, method.labels[batch.index], method.weights.double())
    ledger.agree(CROSS_ENTROPY, found["loss"], expected)
    assert found["loss"].item() == pytest.approx(math.log(TINY.clusters), rel=0.1)
    assert found["features"].shape == (TINY.batch, method.backbone.dim)


def test_labels_survive_a_checkpoint_in_the_middle_of_an_epoch(digits):
    some, _ = started(digits, uniform=False, reweight=0.5)
    other = build(RECIPE, replace(TINY, uniform=False, reweight=0.5), digits)
    other.load_state_dict(some.method.state_dict())
    for name in ("labels", "weights", "stability"):
        assert torch.equal(getattr(other, name), getattr(some.method, name))


def test_more_clusters_than_images_are_refused(digits):
    with pytest.raises(UsageError, match="600 clusters of 512"):
        started(digits, clusters=600)


def test_the_classifier_has_no_momentum(digits):
    some = trainer(RECIPE, replace(TINY, max_steps=2), digits)
    some.run(Reporter(), "test")
    held = {id(p) for p, state in some.optimizer.state.items() if state.get("momentum_buffer") is not None}
    head = {id(p) for p in some.method.head.parameters()}
    assert held and not held & head
    momenta = {group["momentum"] for group in some.optimizer.param_groups if head & {id(p) for p in group["params"]}}
    assert momenta == {0.0}


def test_the_paper_preset_sees_edges_at_a_constant_rate():
    config = RECIPE.presets[PAPER]
    assert {rate(config.optim, 2502 * epoch, 2502, 2502 * 200) for epoch in (0, 100, 199)} == {0.1}
    (view,) = RECIPE.views(config)
    names = [type(op).__name__ for op in view.ops]
    assert names == ["RandomResizedCrop", "HorizontalFlip", "Rotate", "ColorJitter", "Grayscale", "Normalize"]
    assert (view.ops[0].scale, view.ops[2].degrees, view.ops[3].p, view.ops[4].p) == ((0.08, 1.0), 2.0, 1.0, 0.2)


def test_the_sobel_stem_has_no_weights_to_learn(digits):
    method = build(RECIPE, replace(TINY, stem="sobel"), digits)
    assert any(isinstance(module, Sobel) for module in method.backbone.modules())
    shapes = [p.shape for name, p in method.backbone.named_parameters() if "conv1" in name]
    assert shapes[0][1] == 2


def _process(number, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    logits, labels, weights = (x.chunk(2)[number] if i < 2 else x for i, x in enumerate(problem(12)))
    x = logits.clone().requires_grad_()
    loss = weighted_cross_entropy(x, labels, weights)
    loss.backward()
    torch.save((loss.detach(), x.grad / 2), f"{folder}/{number}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_weigh_over_the_global_batch(tmp_path):
    torch.multiprocessing.spawn(_process, (tmp_path,), nprocs=2)
    parts = [torch.load(tmp_path / f"{number}.pt", weights_only=True) for number in range(2)]
    logits, labels, weights = problem(12)
    x = logits.clone().requires_grad_()
    loss = weighted_cross_entropy(x, labels, weights)
    loss.backward()
    torch.testing.assert_close(sum(part for part, _ in parts) / 2, loss.detach())
    torch.testing.assert_close(torch.cat([gradient for _, gradient in parts]), x.grad)


def test_other_processes_take_the_labels_of_the_first(digits, monkeypatch):
    some = trainer(RECIPE, TINY, digits)
    monkeypatch.setattr(deepcluster, "rank", lambda: 1)
    monkeypatch.setattr(deepcluster, "kmeans", lambda *_, **__: pytest.fail("process 1 must not cluster"))
    monkeypatch.setattr(deepcluster, "agree", lambda labels: labels.copy_(torch.arange(len(labels)) % TINY.clusters))
    some.method.on_epoch_start(some._progress(0), some.data)
    assert torch.equal(some.method.labels, torch.arange(len(digits)) % TINY.clusters)
