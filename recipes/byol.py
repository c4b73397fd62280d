# SPDX-License-Identifier: Apache-2.0
"""Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning (BYOL).

Jean-Bastien Grill, Florian Strub, Florent Altché, Corentin Tallec, Pierre H. Richemond, Elena Buchatskaya, Carl Doersch,
Bernardo Avila Pires, Zhaohan Daniel Guo, Mohammad Gheshlaghi Azar, Bilal Piot, Koray Kavukcuoglu, Rémi Munos,
Michal Valko. NeurIPS 2020. https://arxiv.org/abs/2006.07733

From one view an online network predicts what a target network, its slowly moving average, makes of the other view; there
are no negatives.

Run: suite run --algo byol --preset resnet50_16xb256-coslr-200e_in1k --data-root imagenet=DIR
Expected: ImageNet linear 71.88 (MMSelfSup, batch 4096, 200 epochs), 74.3 in the paper (1000 epochs).
Differs: the target starts as a copy of the online network (MMSelfSup's copy missed the re-initialised online network, the
official code draws two networks); the loss is the paper's squared distance, MMSelfSup's plus 4; every batch norm is left
out of weight decay and LARS adaptation (MMSelfSup 0.x misses the shortcut's), and LARS keeps the learning rate out of its
momentum buffer, as the official code does. With accumulation the target moves once per optimizer step (MMSelfSup 1.x moves
it with every micro-batch).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from suite.backbone import Backbone
from suite.method import Batch, Method, Progress, TrainSet
from suite.nn.ema import EMA, cosine_momentum
from suite.nn.heads import mlp
from suite.optim import NORM_AND_BIAS
from suite.presets import CIFAR, DIGITS, PHOTOS, TINY
from suite.spec import Config, Optim, Paper, Published, Recipe, Rule
from suite.views import ColorJitter, GaussianBlur, Grayscale, HorizontalFlip, Normalize, RandomResizedCrop, Solarize, View


@dataclass(frozen=True, kw_only=True)
class BYOLConfig(Config):
    """Settings of BYOL; the defaults are the paper's, the batch norm is over the global batch."""

    dim: PositiveInt = 256
    hidden: PositiveInt = 4096
    "Width of the hidden layer of projector and predictor."
    m: NonNegativeFloat = 0.99
    "Momentum of the target network at the start; it ends at 1."
    sync_bn: bool = True
    crop_min: float = 0.08
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    blur: tuple[float, float] = (1.0, 0.1)
    "Probability of Gaussian blur in the first and the second view."
    solarize: tuple[float, float] = (0.0, 0.2)
    "Probability of solarisation in the first and the second view."


def regression_loss(p: Tensor, z: Tensor) -> Tensor:
    """Mean over the batch of ‖p/‖p‖ - z/‖z‖‖² = 2 - 2 cos(p, z) (BYOL, eq. 2).

    Args:
        p: N×d predictions.
        z: N×d targets, without gradient.
    """
    return 2 - 2 * F.cosine_similarity(p.float(), z.float(), dim=1).mean()


class BYOL(Method):
    """q(g(f(v))) against the target's g'(f'(v')); xi <- m xi + (1 - m) theta."""

    def __init__(self, config: BYOLConfig, backbone: Backbone, data: TrainSet) -> None:
        super().__init__(config, backbone, data)
        self.m = config.m
        self.g = mlp((backbone.dim, config.hidden, config.dim), bias=True, last_bias=False)
        self.q = mlp((config.dim, config.hidden, config.dim), bias=True, last_bias=False)
        self.target = EMA(self.online)

    @property
    def online(self) -> nn.Module:
        """What the target averages: backbone f and projector g, without the predictor."""
        return nn.Sequential(self.backbone, self.g)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 2, and the same with the views exchanged (section 3.1)."""
        v1, v2 = batch.views
        z1, z2 = self.g(self.backbone(v1)), self.g(self.backbone(v2))  # N×d
        t1, t2 = self.target(v1), self.target(v2)  # N×d
        return {"loss": regression_loss(self.q(z1), t2) + regression_loss(self.q(z2), t1), "features": z1}

    def after_step(self, progress: Progress) -> None:
        """Eq. 1, with the momentum of section 3.3."""
        self.target.update(self.online, cosine_momentum(self.m, progress.fraction))


def views(config: BYOLConfig) -> Sequence[View]:
    """Two views by two augmentations, T and T' (appendix B)."""

    def view(blur: float, solarize: float) -> View:
        return View(
            (
                RandomResizedCrop(config.size, scale=(config.crop_min, 1.0), interpolation="bicubic"),
                HorizontalFlip(config.flip),
                ColorJitter(*config.jitter, p=0.8),
                Grayscale(0.2),
                GaussianBlur((0.1, 2.0), blur),
                Solarize(p=solarize),
                Normalize(),
            )
        )

    return tuple(view(*chances) for chances in zip(config.blur, config.solarize, strict=True))


EXCLUDED = (Rule(pattern=NORM_AND_BIAS, weight_decay=0.0, adapt=False),)


def _resnet50(epochs: int, lr: float = 4.8, shift: bool = False, precision: Literal["32", "16"] = "32") -> BYOLConfig:
    """A preset of the model zoo: batch 4096, whose cosine moves once per epoch."""
    return BYOLConfig(
        arch_options={"zero_init_last": False}, batch=4096, epochs=epochs, precision=precision, workers=8,
        optim=Optim(
            name="lars", lr=lr, weight_decay=1e-6, warmup=10, warmup_ratio=1e-4, every="epoch", shift=shift,
            rules=EXCLUDED,
        ),
    )  # fmt: skip


RECIPE = Recipe(
    name="byol",
    title="BYOL",
    paper=Paper(
        title="Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning",
        authors="Jean-Bastien Grill, Florian Strub, Florent Altché, Corentin Tallec, Pierre H. Richemond, "
        "Elena Buchatskaya, Carl Doersch, Bernardo Avila Pires, Zhaohan Daniel Guo, Mohammad Gheshlaghi Azar, Bilal Piot, "
        "Koray Kavukcuoglu, Rémi Munos, Michal Valko",
        venue="NeurIPS 2020",
        url="https://arxiv.org/abs/2006.07733",
        summary="From one view of an image an online network predicts the representation that a target network has of "
        "another view. The target is a slowly moving average of the online network; there are no negatives.",
    ),
    method=BYOL,
    views=views,
    presets={
        "resnet50_8xb32-accum16-coslr-100e_in1k": _resnet50(100, lr=7.2),
        "resnet50_8xb32-accum16-coslr-200e_in1k": _resnet50(200),
        "resnet50_8xb32-accum16-coslr-300e_in1k": _resnet50(300),
        "resnet50_8xb256-fp16-accum2-coslr-100e_in1k": _resnet50(100, lr=7.2, precision="16"),
        "resnet50_8xb256-fp16-accum2-coslr-200e_in1k": _resnet50(200, precision="16"),
        "resnet50_8xb256-fp16-accum2-coslr-300e_in1k": _resnet50(300, precision="16"),
        # MMSelfSup 1.x, where the cosine starts after the warm-up.
        "resnet50_8xb256-amp-accum2-coslr-100e_in1k": _resnet50(100, lr=7.2, shift=True, precision="16"),
        "resnet50_8xb256-amp-accum2-coslr-200e_in1k": _resnet50(200, shift=True, precision="16"),
        "resnet50_8xb256-amp-accum2-coslr-300e_in1k": _resnet50(300, shift=True, precision="16"),
        "resnet50_16xb256-coslr-200e_in1k": _resnet50(200),
        # lightly's CIFAR-10 benchmark, but for its constant momentum.
        "resnet18_1xb512-coslr-200e_cifar10": BYOLConfig(
            **CIFAR, optim=Optim(lr=0.24, weight_decay=5e-4, every="epoch"), hidden=1024, blur=(0.0, 0.0),
            solarize=(0.0, 0.0), jitter=(0.4, 0.4, 0.4, 0.1),
        ),
        "photos": BYOLConfig(**PHOTOS, optim=Optim(lr=0.1, weight_decay=1e-4, warmup=2), hidden=1024),
        "digits": BYOLConfig(
            **DIGITS, batch=128, epochs=25, optim=Optim(lr=0.2, weight_decay=1e-4, warmup=1), precision="bf16",
            hidden=256, dim=64, m=0.95, flip=0.0, blur=(0.0, 0.0), solarize=(0.0, 0.0), crop_min=0.5,
            jitter=(0.8, 0.8, 0.8, 0.5),
        ),
        "tiny": BYOLConfig(**TINY, optim=Optim(lr=0.01), hidden=32, dim=16, m=0.9, flip=0.0),
    },
    reference={
        "resnet50_8xb32-accum16-coslr-200e_in1k": (
            Published("linear/top1", 71.72, "MMSelfSup 0.x configs/selfsup/byol/README.md"),
        ),
        "resnet50_8xb32-accum16-coslr-300e_in1k": (
            Published("linear/top1", 72.93, "MMSelfSup 0.x configs/selfsup/byol/metafile.yml"),
        ),
        "resnet50_16xb256-coslr-200e_in1k": (
            Published("linear/top1", 71.88, "MMSelfSup 0.x configs/selfsup/byol/README.md"),
            Published("linear/top1", 71.8, "MMSelfSup 1.x configs/selfsup/byol/metafile.yml"),
        ),
        "resnet18_1xb512-coslr-200e_cifar10": (
            Published("knn/top1.k200", 86.8, "lightly docs/source/getting_started/benchmarks.rst", "best epoch on test"),
        ),
    },
    batch_dependent="batch norm statistics are those of the micro-batch of all processes, so accumulation means fewer samples",
)  # fmt: skip
