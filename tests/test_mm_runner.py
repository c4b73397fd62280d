# SPDX-License-Identifier: Apache-2.0
"""The fine-tuning loop: order, resuming, parts of a batch, memory, schedules."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from evaluators import detection
from evaluators.mm import runner, samples, schedule
from suite.errors import JobError
from suite.train import Interrupted
from tests.mm_samples import FakeBench


def test_draws_do_not_depend_on_where_they_start() -> None:
    groups = [0, 0, 1, 0, 1, 1, 0]
    whole = list(samples.Draws(groups, 2, 0, 20, seed=3))
    assert list(samples.Draws(groups, 2, 13, 20, seed=3)) == whole[13:]
    assert list(samples.Draws(groups, 2, 0, 20, seed=4)) != whole
    assert all(len({groups[i] for _, i in batch}) == 1 for batch in whole)
    assert {i for batch in whole[:4] for _, i in batch} == set(range(7)), "a pass sees every picture"
    assert len({draw for batch in whole for draw, _ in batch}) == 40


def test_rates() -> None:
    step = schedule.step_rate((18_000, 22_000), 0.1, 100, 0.001)
    assert [step(i) for i in (0, 50, 100, 17_999)] == pytest.approx([0.001, 0.5005, 1, 1])
    assert [step(i) for i in (18_000, 22_000)] == pytest.approx([0.1, 0.01])
    poly = schedule.poly_rate(100, 0.9, 0.01)
    assert poly(0) == 1 and poly(99) == pytest.approx(0.99 * 0.01**0.9 + 0.01)


class Line(torch.nn.Module):
    """The smallest model with the interface of OpenMMLab's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def data_preprocessor(self, batch: dict[str, list[Any]], training: bool) -> dict[str, list[Any]]:
        return batch

    def loss(self, inputs: list[Tensor], data_samples: list[Any]) -> dict[str, Any]:
        noise = torch.rand(1)
        return {"loss_a": [((self.weight - x - noise) ** 2) for x in inputs], "acc": torch.ones(1)}


def line_data(stop_at: int = -1) -> samples.Samples:
    seen = []

    def pack(item: dict[str, Any]) -> dict[str, Any]:
        seen.append(1)
        if len(seen) == stop_at:
            raise KeyboardInterrupt
        return {"inputs": torch.tensor(item["x"] + np.random.rand()), "data_samples": None}

    return samples.Samples([{"x": float(i)} for i in range(5)], [pack])


def test_an_interrupted_fine_tuning_continues_exactly(tmp_path: Path) -> None:
    cfg, bench = detection.DetectionConfig(iterations=9, batch=2, lr=0.01, workers=0), FakeBench(tmp_path)
    straight, resumed = Line(), Line()
    runner.finetune(straight, line_data(), cfg, bench, lambda step: 1.0)
    with pytest.raises(KeyboardInterrupt):
        runner.finetune(Line(), line_data(13), cfg, bench, lambda step: 1.0, save_every=0.0)
    assert (tmp_path / "finetune.pt").is_file()
    runner.finetune(resumed, line_data(), cfg, bench, lambda step: 1.0)
    assert torch.equal(straight.weight, resumed.weight)
    assert not (tmp_path / "finetune.pt").exists()
    assert bench.bars[0][2] == bench.bars[2][2] == 9


def test_a_checkpoint_of_other_settings_or_damaged_is_not_resumed(tmp_path: Path) -> None:
    cfg, bench = detection.DetectionConfig(iterations=4, batch=2, lr=0.01, workers=0), FakeBench(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        runner.finetune(Line(), line_data(5), cfg, bench, lambda step: 1.0, save_every=0.0)
    other, straight = Line(), Line()
    changed = dataclasses.replace(cfg, lr=0.02)
    runner.finetune(other, line_data(), changed, bench, lambda step: 1.0)
    runner.finetune(straight, line_data(), changed, FakeBench(tmp_path), lambda step: 1.0)
    assert torch.equal(other.weight, straight.weight)
    (tmp_path / "finetune.pt").write_bytes(b"cut short")
    runner.finetune(other, line_data(), changed, bench, lambda step: 1.0)


def test_parts_of_a_batch_give_the_gradient_of_the_whole(tmp_path: Path) -> None:
    cfg = detection.DetectionConfig(iterations=1, batch=4, lr=0.01, workers=0)
    weights = []
    for parts in (1, 2):
        model = Line()
        model.loss = lambda inputs, samples, m=model: {"loss": torch.stack([(m.weight - x) ** 2 for x in inputs])}
        runner.finetune(model, line_data(), dataclasses.replace(cfg, accumulate=parts), FakeBench(tmp_path), lambda s: 1.0)
        weights.append(model.weight.item())
    assert weights[0] == pytest.approx(weights[1]) and weights[0] != 0


def test_divergence_names_the_learning_rate(tmp_path: Path) -> None:
    model = Line()
    model.loss = lambda inputs, samples: {"loss": model.weight.sum() * float("nan")}
    with pytest.raises(JobError, match="nan at iteration 0.*lr=0.5"):
        runner.finetune(model, line_data(), detection.DetectionConfig(lr=0.5, workers=0), FakeBench(tmp_path), lambda s: 1.0)


def test_fine_tuning_leaves_the_global_generators_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    cfg = detection.DetectionConfig(iterations=2, batch=2, lr=0.01, workers=0)
    runner.finetune(Line(), line_data(), cfg, FakeBench(tmp_path), lambda s: 1.0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


class Small(Line):
    """Runs out of memory on more than `limit` pictures at a time."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit, self.seen = limit, []

    def loss(self, inputs: list[Tensor], data_samples: list[Any]) -> dict[str, Any]:
        self.seen.append(len(inputs))
        if len(inputs) > self.limit:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return {"loss": torch.stack([(self.weight - x) ** 2 for x in inputs])}

    def predict(self, inputs: list[Tensor], data_samples: list[Any]) -> list[float]:
        self.loss(inputs, data_samples)
        return [float(x) for x in inputs]


def test_out_of_memory_halves_the_parts_and_says_so(tmp_path: Path) -> None:
    cfg, bench = detection.DetectionConfig(iterations=2, batch=4, lr=0.01, workers=0), FakeBench(tmp_path)
    small, large = Small(1), Small(9)
    runner.finetune(small, line_data(), cfg, bench, lambda step: 1.0)
    runner.finetune(large, line_data(), cfg, FakeBench(tmp_path), lambda step: 1.0)
    assert small.seen == [4, 2, 1, 1, 1, 1, 1, 1, 1, 1], "later iterations start with what worked"
    assert small.weight.item() == pytest.approx(large.weight.item()) and large.seen == [4, 4]
    assert bench.selected["accumulate"].startswith("4, as memory ran out with 1: BatchNorm saw 1 picture")


def test_out_of_memory_with_one_picture_is_a_job_error(tmp_path: Path) -> None:
    cfg, bench = detection.DetectionConfig(iterations=2, batch=3, lr=0.01, workers=0), FakeBench(tmp_path)
    with pytest.raises(JobError, match="one picture at a time"):
        runner.finetune(Small(0), line_data(), cfg, bench, lambda step: 1.0)
    with pytest.raises(JobError, match="predicting one picture"):
        list(runner.predict(Small(0), line_data(), 4, 0, bench))


def test_prediction_halves_batches_when_memory_runs_out(tmp_path: Path) -> None:
    model, data = Small(2), line_data()
    answers = [x for batch in runner.predict(model, data, 5, 0, FakeBench(tmp_path)) for x in batch]
    assert answers == [x for batch in runner.predict(Small(9), data, 5, 0, FakeBench(tmp_path)) for x in batch]
    assert len(answers) == 5 and max(answers) > 4 and 5 in model.seen


def test_smaller_parts_are_kept_when_resuming(tmp_path: Path) -> None:
    cfg, bench = detection.DetectionConfig(iterations=4, batch=4, lr=0.01, workers=0), FakeBench(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        runner.finetune(Small(2), line_data(10), cfg, bench, lambda step: 1.0, save_every=0.0)
    model = Small(2)
    runner.finetune(model, line_data(), cfg, bench, lambda step: 1.0)
    assert 4 not in model.seen and bench.selected["accumulate"].startswith("2,")


def test_a_long_training_is_kept_until_its_predictions_are_done(tmp_path: Path) -> None:
    cfg, bench = detection.DetectionConfig(iterations=3, batch=2, lr=0.01, workers=0), FakeBench(tmp_path)
    trained, again = Small(9), Small(9)
    runner.finetune(trained, line_data(), cfg, bench, lambda step: 1.0, save_every=0.0)
    runner.finetune(again, line_data(), cfg, bench, lambda step: 1.0)
    assert torch.equal(trained.weight, again.weight) and again.seen == []


def test_a_signal_saves_and_stops(tmp_path: Path) -> None:
    cfg, bench = detection.DetectionConfig(iterations=6, batch=2, lr=0.01, workers=0), FakeBench(tmp_path)
    straight, model = Small(9), Small(9)
    runner.finetune(straight, line_data(), cfg, FakeBench(tmp_path), lambda step: 1.0)
    loss = model.loss
    model.loss = lambda i, s: (len(model.seen) == 2 and os.kill(os.getpid(), signal.SIGTERM)) or loss(i, s)  # type: ignore[func-returns-value]
    with pytest.raises(Interrupted, match="iteration 3 of 6; the same command continues"):
        runner.finetune(model, line_data(), cfg, bench, lambda step: 1.0)
    resumed = Small(9)
    runner.finetune(resumed, line_data(), cfg, bench, lambda step: 1.0)
    assert len(resumed.seen) == 3 and torch.equal(resumed.weight, straight.weight)


@pytest.mark.parametrize("change", ["weights", "data"])
def test_a_checkpoint_of_other_weights_or_data_is_not_resumed(change: str, tmp_path: Path) -> None:
    cfg, bench = detection.DetectionConfig(iterations=4, batch=2, lr=0.01, workers=0), FakeBench(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        runner.finetune(Small(9), line_data(6), cfg, bench, lambda step: 1.0, save_every=0.0)
    if change == "weights":
        bench.weights = "1"
    else:
        bench.fingerprints = {"voc07/test": "1"}
    model = Small(9)
    runner.finetune(model, line_data(), cfg, bench, lambda step: 1.0)
    assert len(model.seen) == 4


def test_samples_give_back_their_items_unshared() -> None:
    items = [{"a": [1, {"b": 2}], "map": {0: 255}}, {"a": "x"}]

    def spoil(item: dict[str, Any]) -> dict[str, Any]:
        copy = {key: list(value) if isinstance(value, list) else value for key, value in item.items()}
        item["a"] = None
        return copy

    data = samples.Samples(items, [spoil])
    assert len(data) == 2 and [data[(0, i)] for i in (0, 1)] == items == [data[(1, i)] for i in (0, 1)]
    assert len(samples.Samples([], [])) == 0
