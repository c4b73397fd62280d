# SPDX-License-Identifier: Apache-2.0
"""Unsupervised Visual Representation Learning by Context Prediction (relative location).

Carl Doersch, Abhinav Gupta, Alexei A. Efros. ICCV 2015. https://arxiv.org/abs/1505.05192

Given two patches of a picture, tell on which of eight sides of the one the other was, which needs parts and objects.

Run: suite run --algo relative-loc --preset resnet50_8xb64-steplr-70e_in1k --data-root imagenet=DIR
Expected: ImageNet linear 39.65 (MMSelfSup 0.x README; its metafile says 38.78), 40.4 (1.x); best layer 51.20.
Differs: the presets follow MMSelfSup's ResNet-50 and its 64-pixel patches of a 255-pixel picture (as Kolesnikov et al.,
arXiv 1901.09005), not the paper's AlexNet with 96-pixel patches and sampled pairs. Each patch passes the network once;
MMSelfSup passes the centre once per neighbour, which weighs it eight times in the batch statistics. Colours are
normalised by the unrounded constants, grayscale is by luma (1.x: rounded, equal weights).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from suite.backbone import Backbone
from suite.draws import Draws
from suite.method import Batch, Method, Progress, TrainSet
from suite.nn.patches import jittered_grid, neighbour_pairs
from suite.presets import DIGITS, PHOTOS, TINY
from suite.spec import Config, Optim, Paper, Published, Recipe, Rule
from suite.views import ColorJitter, Grayscale, Normalize, RandomCrop, Resize, View


@dataclass(frozen=True, kw_only=True)
class RelativeLocConfig(Config):
    """Settings of relative location; the defaults are those of the ResNet-50 preset."""

    resize: PositiveInt = 292
    "Shorter side of the picture before the crop."
    crop: PositiveInt = 255
    "Side of the square that is divided in 3×3 cells; `size` remains that of whole pictures in evaluations."
    patch: PositiveInt = 64
    "Side of the patch that lies at a random place in each cell."
    hidden: PositiveInt = 4096
    dropout: NonNegativeFloat = 0.5
    neck_momentum: PositiveFloat = 0.003
    "Weight of a batch in the running statistics of the neck's batch norm."
    gray: float = 0.66
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    "Not in the paper: keeps a smooth coloured background from giving the place away."


class RelativeLoc(Method):
    """Eight-way classification of where a patch lies around another one."""

    def __init__(self, config: RelativeLocConfig, backbone: Backbone, data: TrainSet) -> None:
        super().__init__(config, backbone, data)
        self.patch, self.seed, self.epoch = config.patch, data.seed, 0
        fc = nn.Linear(2 * backbone.dim, config.hidden)
        norm = nn.BatchNorm1d(config.hidden, momentum=config.neck_momentum)
        self.neck = nn.Sequential(fc, norm, nn.ReLU(inplace=True), nn.Dropout(config.dropout))
        self.head = nn.Linear(config.hidden, 8)
        for layer, std in ((fc, 0.01), (self.head, 0.005)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def on_step_start(self, progress: Progress) -> None:
        """Where the patches of an image lie depends on the epoch."""
        self.epoch = progress.epoch

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Section 3: cross entropy over all eight (neighbour, centre) pairs of every image."""
        draws = Draws(self.seed, self.epoch, batch.index).fold("patches")
        patches = jittered_grid(batch.views[0], self.patch, draws)  # N×9×3×P×P
        h = self.backbone(patches.flatten(0, 1))  # 9N×D
        h = h.unflatten(0, patches.shape[:2])  # N×9×D
        pairs, place = neighbour_pairs(h)  # 8N×2D, 8N
        logits = self.head(self.neck(pairs)).float()  # 8N×8
        top1 = 100 * (logits.detach().argmax(1) == place).float().mean()
        return {"loss": F.cross_entropy(logits, place), "top1": top1, "features": h[:, 4]}


def views(config: RelativeLocConfig) -> Sequence[View]:
    """One square of the picture, often without its colour, from which the method cuts the patches."""
    jitter = (ColorJitter(*config.jitter, p=0.8),) if any(config.jitter) else ()
    return (View((Resize(config.resize), RandomCrop(config.crop), *jitter, Grayscale(config.gray), Normalize())),)


HEAD_DECAY = (Rule(pattern=r"^(neck|head)\.", weight_decay=5e-4),)

RECIPE = Recipe(
    name="relative-loc",
    title="Relative location",
    paper=Paper(
        title="Unsupervised Visual Representation Learning by Context Prediction",
        authors="Carl Doersch, Abhinav Gupta, Alexei A. Efros",
        venue="ICCV 2015",
        url="https://arxiv.org/abs/1505.05192",
        summary="Two patches are cut from a picture, with a random gap between them. The network must tell on which of "
        "eight sides of the first the second was, for which it has to recognise parts and how they belong together.",
    ),
    method=RelativeLoc,
    views=views,
    presets={
        "resnet50_8xb64-steplr-70e_in1k": RelativeLocConfig(
            arch_options={"zero_init_last": False}, batch=512, epochs=70, workers=8,
            optim=Optim(
                lr=0.2, weight_decay=1e-4, schedule="step", milestones=(30, 50), warmup=5, warmup_ratio=0.1,
                rules=HEAD_DECAY,
            ),
        ),
        "photos": RelativeLocConfig(
            **PHOTOS, optim=Optim(lr=0.05, weight_decay=1e-4, warmup=1, rules=HEAD_DECAY), resize=165, crop=144, patch=36,
            hidden=512, neck_momentum=0.1,
        ),
        "digits": RelativeLocConfig(
            **DIGITS, batch=128, epochs=15, optim=Optim(lr=0.1, weight_decay=1e-4, warmup=1, rules=HEAD_DECAY),
            precision="bf16", resize=48, crop=45, patch=12, hidden=256, neck_momentum=0.1, dropout=0.2,
            jitter=(0.8, 0.8, 0.8, 0.5),
        ),
        "tiny": RelativeLocConfig(
            **TINY, optim=Optim(lr=0.02, rules=HEAD_DECAY), resize=48, crop=45, patch=12, hidden=32, dropout=0.0,
            neck_momentum=0.1,
        ),
    },
    reference={
        "resnet50_8xb64-steplr-70e_in1k": (
            Published("linear/top1", 39.65, "MMSelfSup 0.x configs/selfsup/relative_loc/README.md", "38.78 in its metafile"),
            Published("linear/top1", 40.4, "MMSelfSup 1.x configs/selfsup/relative_loc/metafile.yml"),
            Published("svm/map", 65.52, "MMSelfSup 0.x configs/selfsup/relative_loc/README.md", "selected on test"),
        ),
    },
    batch_dependent="batch norm statistics are per device",
)  # fmt: skip
