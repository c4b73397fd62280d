# SPDX-License-Identifier: Apache-2.0
"""Feature extraction against the bare forward pass, and augmentation against torchvision on single pictures."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms as T

from recipes.mocov2 import RECIPE, MoCoV2Config
from suite import engine
from suite.backbone import Backbone
from suite.data import ImageSet
from suite.draws import Draws
from suite.features import extract
from suite.views import CenterCrop, Normalize, View
from tests.bench.paired import Effort, Row, Side, measure, row
from tests.bench.training import CIFAR, Pictures, synchronise

BATCH = 256


def feature_rows(images: ImageSet, effort: Effort) -> list[Row]:
    """Pooled features of the embedded pictures by two networks."""
    found = []
    for name, preset, count in (("digits preset", "digits", 4), ("ResNet-18 CIFAR stem", CIFAR, 1)):
        config = RECIPE.presets[preset]
        backbone = Backbone(config.arch, config.arch_options, config.stem)
        some = images.subset(np.arange(min(len(images), count * BATCH)))
        sides = [Side("extract", extraction(backbone, some)), Side("bare", forward(backbone, some))]
        found.append(row(f"feature extraction, {name} / bare forward", measure(sides, effort), "extract", "bare", 0.95))
    return found


def extraction(backbone: Backbone, images: ImageSet) -> Callable[[int], int]:
    """From decoded pictures to a feature matrix, as evaluators do it."""
    view = View((CenterCrop(32), Normalize()))

    def run(passes: int) -> int:
        for _ in range(passes):
            extract(backbone, images, view, ["pooled"], device=engine.default_device(), batch=BATCH)
        return passes * len(images)

    return run


def forward(backbone: Backbone, images: ImageSet) -> Callable[[int], int]:
    """The network alone on tensors that are already there, in the same batches."""
    device = engine.default_device()
    net = backbone.eval().to(device).to(memory_format=torch.channels_last)
    pixels = torch.randn(len(images), 3, 32, 32).to(device).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def run(passes: int) -> int:
        net.eval()
        for _ in range(passes):
            for x in pixels.split(BATCH):
                net(x)
        synchronise()
        return passes * len(images)

    return run


def augmentation_rows(images: ImageSet, effort: Effort) -> list[Row]:
    """One MoCo v2 view of 32 and 224 pixels: on one thread, and as each is used on all cores."""
    found = []
    paper: MoCoV2Config = RECIPE.presets["resnet50_8xb32-coslr-200e_in1k"]
    for size, side, count in ((32, 32, 256), (224, 256, 32)):
        config = replace(paper, size=size)
        batch = enlarged(images, count, side)
        name = f"mocov2 view, {size} px"
        sides = [Side("batched", batched(config, batch, 1)), Side("single", per_image(config, batch))]
        speeds = measure(sides, effort)
        found.append(row(f"{name}, one thread / torchvision", speeds, "batched", "single", 1.0))
        cores = torch.get_num_threads()
        sides = [Side("batched", batched(config, batch, cores)), Side("workers", in_workers(config, batch, cores), stretch=3.0)]
        speeds = measure(sides, effort)
        found.append(row(f"{name}, {cores} threads / {cores} workers", speeds, "batched", "workers", 1.0))
    return found


def enlarged(images: ImageSet, count: int, side: int) -> np.ndarray:
    """The first pictures at another size, N×side×side×3 uint8."""
    pictures = (Image.fromarray(images.images[i]) for i in range(count))
    return np.stack([np.array(picture.resize((side, side), Image.Resampling.BICUBIC)) for picture in pictures])


def batched(config: MoCoV2Config, pictures: np.ndarray, threads: int) -> Callable[[int], int]:
    """This project's view on a whole batch of uint8 pictures."""
    view = RECIPE.views(config)[0]
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous().to(engine.default_device())
    index = torch.arange(len(pictures))

    def run(batches: int) -> int:
        with using(threads):
            for i in range(batches):
                view(pixels, Draws(0, i, index))
            synchronise()
        return batches * len(pictures)

    return run


def single_view(config: MoCoV2Config) -> Callable[[Image.Image], torch.Tensor]:
    """The same view from torchvision's transforms of one picture; the blur is Pillow's, as in the official MoCo."""
    return T.Compose([
        T.RandomResizedCrop(config.size, scale=(config.crop_min, 1.0)),
        T.RandomApply([T.ColorJitter(*config.jitter)], p=0.8),
        T.RandomGrayscale(0.2),
        T.RandomApply([PillowBlur()], p=config.blur),
        T.RandomHorizontalFlip(config.flip),
        T.ToTensor(),
        T.Normalize(Normalize().mean, Normalize().std),
    ])  # fmt: skip


class PillowBlur(nn.Module):
    """Gaussian blur of random width, by Pillow."""

    def forward(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(float(torch.empty(1).uniform_(0.1, 2.0))))


def per_image(config: MoCoV2Config, pictures: np.ndarray) -> Callable[[int], int]:
    """Picture after picture on one thread, stacked to batches."""
    transform, sources = single_view(config), [Image.fromarray(picture) for picture in pictures]

    def run(batches: int) -> int:
        with using(1):
            for _ in range(batches):
                torch.stack([transform(source) for source in sources])
        return batches * len(sources)

    return run


def in_workers(config: MoCoV2Config, pictures: np.ndarray, workers: int) -> Callable[[int], int]:
    """Picture after picture in a DataLoader with so many workers, started anew for each call."""
    data = Pictures(pictures, single_view(config))

    def run(batches: int) -> int:
        sampler = list(range(len(data))) * batches
        for _ in DataLoader(data, len(data), sampler=sampler, num_workers=workers):
            pass
        return len(sampler)

    return run


@contextlib.contextmanager
def using(threads: int) -> Iterator[None]:
    """Torch on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
