# SPDX-License-Identifier: Apache-2.0
"""MoCo v2 three ways: this project's loop, the bare steps on resident views, and assembled from the lightly package."""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from recipes.mocov2 import RECIPE, MoCoV2Config
from suite import engine, optim
from suite.backbone import Backbone
from suite.data import ImageSet
from suite.method import Batch, Progress
from suite.progress import Reporter
from suite.testing import build, trainer
from tests.bench.paired import Effort, Row, Side, measure, row

CIFAR = "resnet18_1xb512-coslr-200e_cifar10"


def rows(images: ImageSet, effort: Effort) -> list[Row]:
    """Both networks against the bare step and against lightly; the CIFAR preset runs on the embedded pictures."""
    found: list[Row] = []
    for name, preset, changes in (
        ("mocov2 digits preset", "digits", {}),
        ("mocov2 ResNet-18 CIFAR stem, batch 64", CIFAR, {"batch": 64, "precision": "bf16"}),
    ):
        config: MoCoV2Config = replace(RECIPE.presets[preset], dataset="digits", **changes)
        found += compare(f"{name}, {config.precision}", config, images, effort)
    return found


def compare(name: str, config: MoCoV2Config, images: ImageSet, effort: Effort) -> list[Row]:
    """The loop against the bare step, and against lightly where that is installed."""
    sides = [Side("loop", loop(config, images)), Side("bare", bare(config, images))]
    why = ""
    try:
        sides.append(Side("lightly", lightly(config, images), stretch=3.0))
    except ImportError as error:
        why = f"lightly cannot be imported ({error})"
    speeds = measure(sides, effort)
    against_bare = row(f"{name} / bare step", speeds, "loop", "bare", 0.95)
    if why:
        return [against_bare, Row(f"{name} / lightly", 1.0, why=why)]
    return [against_bare, row(f"{name} / lightly (its defaults, fp32)", speeds, "loop", "lightly", 1.0)]


def loop(config: MoCoV2Config, images: ImageSet) -> Callable[[int], int]:
    """The training loop with its loader and augmentation, continued for so many steps."""
    with deterministic(True):
        training = trainer(RECIPE, config, images, epochs=1_000_000)
        training.total = 0

    def run(steps: int) -> int:
        with deterministic(True):
            training.total = training.step + steps
            training.run(Reporter(), "bench")
        return steps * config.batch

    return run


def bare(config: MoCoV2Config, images: ImageSet) -> Callable[[int], int]:
    """EMA, forward, backward and optimizer step of the same model, over a few batches of views that are already there."""
    with deterministic(True):
        source = trainer(RECIPE, config, images)
    device = source.fabric.device
    pool = list(itertools.islice(source.loader.epoch(0), 4))
    method = build(RECIPE, config, images).to(device).to(memory_format=torch.channels_last).train()
    optimizer = optim.build(method.param_groups(config.optim), config.optim)
    low = {"bf16": torch.bfloat16, "16": torch.float16}.get(engine.supported(config.precision, device))
    progress = Progress(0, 0, 1, 1)

    def step(batch: Batch) -> None:
        method.on_step_start(progress)
        with torch.autocast(device.type, dtype=low, enabled=low is not None):
            loss = method(batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def run(steps: int) -> int:
        with deterministic(False):
            for i in range(steps):
                step(pool[i % len(pool)])
        synchronise()
        return steps * config.batch

    return run


@contextlib.contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """What the loop asks of torch on a CPU, for its own share of the time only."""
    before = torch.are_deterministic_algorithms_enabled()
    if on:
        engine.make_deterministic(engine.default_device())
    else:
        torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=True)


def synchronise() -> None:
    """Wait for the accelerator, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Pictures(Dataset):
    """Pillow pictures through a transform: what torchvision and lightly are fed."""

    def __init__(self, pictures: Iterable[np.ndarray], transform: Callable[[Image.Image], Any]) -> None:
        self.pictures = [Image.fromarray(picture) for picture in pictures]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> Any:
        return self.transform(self.pictures[i])


def lightly(config: MoCoV2Config, images: ImageSet) -> Callable[[int], int]:
    """MoCo v2 from lightly's parts, as in its documentation: float32, DataLoader workers, one per core but eight at most.

    Network, batch, queue, optimizer and the probabilities of the augmentation are the recipe's. One call is one short
    epoch, from starting the workers to the last step.
    """
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms import MoCoV2Transform

    device = engine.default_device()
    backbone = Backbone(config.arch, config.arch_options, config.stem)
    head = MoCoProjectionHead(backbone.dim, config.hidden, config.dim, batch_norm=config.head_norm)
    query = nn.Sequential(backbone, head).to(device).train()
    key = copy.deepcopy(query)
    deactivate_requires_grad(key)
    criterion = NTXentLoss(config.temperature, memory_bank_size=(config.queue, config.dim)).to(device)
    settings = config.optim
    optimizer = torch.optim.SGD(query.parameters(), settings.lr, settings.momentum, weight_decay=settings.weight_decay)
    brightness, contrast, saturation, hue = config.jitter
    transform = MoCoV2Transform(
        config.size, cj_bright=brightness, cj_contrast=contrast, cj_sat=saturation, cj_hue=hue, min_scale=config.crop_min,
        gaussian_blur=config.blur, hf_prob=config.flip,
    )  # fmt: skip
    pictures = Pictures(images.array, transform)
    workers = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)

    def run(steps: int) -> int:
        chosen = random.choices(range(len(pictures)), k=steps * config.batch)
        with deterministic(False):
            for x_query, x_key in DataLoader(pictures, config.batch, sampler=chosen, num_workers=workers):
                update_momentum(query, key, m=config.m)
                with torch.no_grad():
                    keys = key(x_key.to(device))
                loss = criterion(query(x_query.to(device)), keys)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        synchronise()
        return steps * config.batch

    return run
