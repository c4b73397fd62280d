# SPDX-License-Identifier: Apache-2.0
"""kNN, linear, fine-tuning and semi-supervised evaluation against independent references, on the same features."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from evaluators import knn, linear, semi_supervised
from suite.data.split import held_out, labelled_subset


def clusters(n=300, d=16, classes=4, seed=0, noise=0.7):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = rng.normal(size=(classes, d))
    return (centres[labels] + noise * rng.normal(size=(n, d))).astype(np.float32), labels


def naive_knn(bank, labels, queries, classes, k, temperature):
    """Cosine similarity and weighted votes in float64, one query at a time."""
    bank = bank.astype(np.float64) / np.linalg.norm(bank.astype(np.float64), axis=1, keepdims=True)
    out = []
    for q in queries.astype(np.float64):
        similarity = bank @ (q / np.linalg.norm(q))
        nearest = np.argsort(-similarity, kind="stable")[:k]
        votes = np.zeros(classes)
        for i in nearest:
            votes[labels[i]] += np.exp(similarity[i] / temperature) if temperature else 1
        out.append(votes.argmax())
    return np.array(out)


@pytest.mark.parametrize("k", [1, 10, 200])
@pytest.mark.parametrize("temperature", [0.07, 0.0])
@pytest.mark.parametrize(("tests", "classes"), [(70, 4), (3, 2), (150, 11)])
def test_knn_equals_brute_force_in_float64(k, temperature, tests, classes):
    x, y = clusters(300 + tests, classes=classes, noise=2.0)
    bank, queries = knn.unit(x[:300]), knn.unit(x[300:])
    ours = knn._predict(bank, y[:300], queries, classes, [k], temperature)[k]
    assert (ours == naive_knn(x[:300], y[:300], x[300:], classes, k, temperature)).all()


def test_knn_majority_agrees_with_scikit_learn():
    x, y = clusters(400, noise=1.5)
    reference = KNeighborsClassifier(5, metric="cosine", algorithm="brute").fit(x[:300], y[:300])
    ours = knn._predict(knn.unit(x[:300]), y[:300], knn.unit(x[300:]), 4, [5], 0.0)[5]
    assert (
        ours == reference.predict(x[300:])
    ).mean() > 0.99  # scikit-learn breaks ties by class order too, distances differ in the last bit


def test_linear_reaches_the_logistic_regression_optimum():
    x, y = clusters(600, noise=1.2)
    features, test = linear.standardise(x[:500], x[500:])
    cfg = linear.LinearConfig(lrs=(0.5,), epochs=150, batch=100, weight_decay=1e-2)
    (head,) = linear.train_heads({"pooled": features}, torch.from_numpy(y[:500]), 4, cfg).values()
    # Same objective: mean cross entropy + wd/2 |w|^2  =  C = 1 / (n wd).
    reference = LogisticRegression(C=1 / (500 * 1e-2), tol=1e-8, max_iter=2000).fit(features.numpy(), y[:500])
    ours = linear.scores(head, test)[0]
    theirs = torch.from_numpy(reference.predict_log_proba(test.numpy()))
    assert (ours.log_softmax(1).exp() - theirs.exp()).abs().mean() < 0.01
    assert (ours.argmax(1) == theirs.argmax(1)).float().mean() >= 0.98


def test_linear_heads_do_not_influence_each_other():
    x, y = clusters(300)
    (features,) = linear.standardise(x)
    cfg, labels = linear.LinearConfig(lrs=(0.1, 1.0), epochs=3), torch.from_numpy(y)
    both = linear.train_heads({"pooled": features}, labels, 4, cfg)["pooled"][0]
    alone = linear.train_heads({"pooled": features}, labels, 4, replace(cfg, lrs=(1.0,)))["pooled"][0]
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-6)


def test_held_out_is_stratified_disjoint_and_keeps_groups_together(digits):
    rest, val = held_out(digits, 0.25, 0)
    assert not set(rest) & set(val) and len(rest) + len(val) == len(digits)
    assert digits.groups is not None and not set(digits.groups[rest]) & set(digits.groups[val])
    share = np.bincount(digits.labels[val], minlength=10) / np.bincount(digits.labels, minlength=10)
    assert share.min() > 0.1 and share.max() < 0.45
    assert len(labelled_subset(digits, 0.001, 0)) >= 10


class FakeBench:
    """The bench's face towards an evaluator, over given features or a scripted fine-tuning."""

    def __init__(self, train, test, features=None, truth=None):
        self.truth = test if truth is None else truth
        self.train, self.test, self.matrix = train, test, features
        self.device, self.selected, self.calls = torch.device("cpu"), {}, []

    def data(self, cfg, split):
        return self.train if split == "train" else self.test

    def features(self, backbone, images, layers):
        return {layer: self.matrix[images.split][: len(images)] for layer in layers}

    def finetune(self, backbone, train, test, settings, cfg, *, epochs, what=""):
        self.calls.append((len(train), test.split, settings.lr, what))
        rng = np.random.default_rng(len(train) + int(1000 * settings.lr))
        true = self.truth.labels if test.split == "test" else test.labels
        return np.eye(10)[true] * settings.lr + 0.05 * rng.random((len(test), 10))

    def select(self, **chosen):
        self.selected.update(chosen)

    def predictions(self, kind, **arrays):
        self.arrays = arrays

    def progress(self, total, what):
        import contextlib

        return contextlib.nullcontext(lambda n=1: None)


class FakeBackbone:
    stage_dims = (4, 8)


@pytest.fixture
def sides(digits):
    train, test = digits.subset(range(400), "train"), digits.subset(range(400, 512), "test")
    shuffled = replace(test, labels=np.random.default_rng(1).permutation(test.labels))
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, 12))
    features = {s.split: (centres[s.labels] + rng.normal(size=(len(s), 12))).astype(np.float32) for s in (train, test)}
    return train, test, shuffled, features


@pytest.mark.parametrize("module", [knn, linear, semi_supervised])
def test_shuffling_test_labels_changes_no_choice(module, sides):
    train, test, shuffled, features = sides
    cfg = module.EVALUATOR.presets["default"]
    honest, blind = FakeBench(train, test, features), FakeBench(train, shuffled, features, truth=test)
    right = module.run(FakeBackbone(), cfg, honest)
    wrong = module.run(FakeBackbone(), cfg, blind)
    assert honest.selected == blind.selected and honest.selected
    assert right["top1"] > wrong["top1"]


def test_semi_supervised_uses_the_stated_share_of_labels(sides):
    train, test, _, _ = sides
    bench = FakeBench(train, test)
    out = semi_supervised.run(FakeBackbone(), semi_supervised.SemiConfig(), bench)
    assert set(out) == {"top1", "top5", "top1.1pct", "top5.1pct", "top1.10pct", "top5.10pct"}
    final = [call for call in bench.calls if call[3]]
    assert [call[3] for call in final] == ["1pct", "10pct"] and 10 <= final[0][0] < final[1][0] <= 60
    assert all(call[1] != "test" for call in bench.calls if not call[3])
