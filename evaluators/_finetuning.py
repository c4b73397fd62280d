# SPDX-License-Identifier: Apache-2.0
"""Training a whole network with a new classifier: what fine-tuning and semi-supervised evaluation share."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

import numpy as np
import torch

from suite.backbone import Backbone
from suite.data.imageset import ImageSet
from suite.data.split import held_out
from suite.errors import UsageError
from suite.method import TrainSet
from suite.nn.classifier import Classifier
from suite.nn.mixing import Mixing
from suite.spec import Optim
from suite.views import ColorJitter, HorizontalFlip, NoiseErasing, Normalize, Op, RandAugment, RandomResizedCrop, Resize, View

if TYPE_CHECKING:
    from suite.bench import Bench

T = TypeVar("T")


class Settings(Protocol):
    """Fields of an evaluator's config that `finetune` reads."""

    @property
    def batch(self) -> int:
        """Images per step; a smaller set is one batch."""
        ...

    @property
    def precision(self) -> str:
        """`32`, `bf16` or `16`."""
        ...

    @property
    def seed(self) -> int:
        """Of the classifier's first weights, order and augmentation."""
        ...

    @property
    def crop_min(self) -> float:
        """Least share of the area that a training crop keeps."""
        ...

    @property
    def flip(self) -> float:
        """Probability of mirroring."""
        ...

    @property
    def label_smoothing(self) -> float:
        """Share of a label that is spread over all classes."""
        ...


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What happens to training pictures beyond crop and flip. The defaults do nothing."""

    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    "Brightness, contrast, saturation, hue."
    randaugment: float = 0.0
    "Strength of two random operations, 0 to 10; 0: none."
    randaugment_std: float = 0.5
    erasing: float = 0.0
    "Probability that a box is replaced by noise."
    mixup: float = 0.0
    "Alpha of the Beta distribution; 0: no mixup."
    cutmix: float = 0.0
    "Alpha of the Beta distribution; 0: no CutMix."
    switch: float = 0.5
    "Share of CutMix where both are on."
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    "Of every resizing, in training and test."

    @property
    def mixing(self) -> Mixing:
        """Mixup and CutMix of a batch."""
        return Mixing(self.mixup, self.cutmix, switch=self.switch)


@dataclass(frozen=True, kw_only=True)
class Network:
    """How the network differs from the one that was pre-trained. The defaults change nothing."""

    drop_path: float = 0.0
    "Probability that the last block is skipped; it grows linearly with depth (Huang et al. 2016)."
    mean_pooling: bool = False
    "Plain transformers: the mean of the patch tokens and a new norm behind it instead of the class token and the old norm."
    head_std: float = 0.01
    "Standard deviation of the classifier's first weights."
    side: int = 0
    "Side of the pictures in pixels; 0: that of the evaluation."
    window: int = 0
    "Attention window of a Swin network; 0: as pre-trained."
    mean: tuple[float, float, float] | None = None
    "Of the normalisation, per channel; None: that of the evaluation."
    std: tuple[float, float, float] | None = None


def finetune(
    bench: Bench,
    backbone: Backbone,
    train: ImageSet,
    test: ImageSet,
    settings: Optim,
    cfg: Settings,
    *,
    epochs: int,
    what: str = "",
    augment: Augment | None = None,
    network: Network | None = None,
) -> np.ndarray:
    """Train a copy of the whole network with a new linear classifier.

    Args:
        bench: the evaluation.
        backbone: starting weights; not changed.
        train: labelled images, one class each.
        test: images to score.
        settings: optimizer; a parameter of the classifier is called `head.…`, one of the network `backbone.net.…`.
        cfg: batch, precision, seed, crop_min, flip and label_smoothing.
        epochs: length.
        what: name under which the training resumes after an interruption; empty for short trials.
        augment: beyond crop and flip.
        network: changes to the network.

    Returns:
        Class scores of the test images, float32 N×C.

    Raises:
        UsageError: no single label per image, fewer than two classes, or a network that cannot be changed that way.
    """
    augment, network = augment or Augment(), network or Network()
    check_labels(train)
    bench = seen(bench, network)
    body = adapted(backbone, network)
    torch.manual_seed(cfg.seed)
    method = Classifier(cfg, body, TrainSet(train), mixing=augment.mixing, head_std=network.head_std)
    view, batch = train_view(bench, cfg, augment), min(cfg.batch, len(train))
    bench.fit(method, train, (view,), settings, batch=batch, epochs=epochs, precision=cfg.precision, seed=cfg.seed, what=what)
    method.eval()
    view = test_view(bench, test, augment.interpolation)
    return bench.scores(method.scores, test, precision=cfg.precision, view=view)


def check_labels(train: ImageSet, test: ImageSet | None = None) -> None:
    """Raise UsageError unless all images carry one label each, the training images those of two classes at least."""
    for images in (train,) if test is None else (train, test):
        if images.labels is None or images.multilabel:
            raise UsageError(f"{images.name}/{images.split} has no single label per image, which a classifier needs")
    if len(np.unique(np.asarray(train.labels))) < 2:
        raise UsageError(f"{train.name}/{train.split} shows fewer than two classes: there is nothing to classify")


def seen(bench: Bench, network: Network) -> Bench:
    """The bench as this training sees it: with pictures of its own side and normalisation."""
    own = copy.copy(bench)
    own.size, own.mean, own.std = network.side or bench.size, network.mean or bench.mean, network.std or bench.std
    return own


def test_view(bench: Bench, test: ImageSet, interpolation: str) -> View:
    """The bench's test view, resized as the training pictures are."""
    ops = bench.view(test).ops
    return View(tuple(replace(op, interpolation=interpolation) if isinstance(op, Resize) else op for op in ops))


def train_view(bench: Bench, cfg: Settings, augment: Augment) -> View:
    """Random resized crop, mirroring, what `augment` says, normalisation, erasing."""
    crop = RandomResizedCrop(bench.size, scale=(cfg.crop_min, 1.0), interpolation=augment.interpolation)
    extra: list[Op] = []
    if any(augment.jitter):
        extra.append(ColorJitter(*augment.jitter))
    if augment.randaugment:
        extra.append(
            RandAugment(
                magnitude=augment.randaugment, std=augment.randaugment_std, fill=bench.mean, interpolation=augment.interpolation
            )
        )
    erasing = (NoiseErasing(augment.erasing),) if augment.erasing else ()
    return View((crop, HorizontalFlip(cfg.flip), *extra, Normalize(bench.mean, bench.std), *erasing))


def adapted(backbone: Backbone, network: Network) -> Backbone:
    """A copy of the backbone, rebuilt where `network` asks for another shape or for drop path.

    Raises:
        UsageError: the architecture does not take the changes.
    """
    net, options = backbone.net, dict(backbone.options)
    pooled = network.mean_pooling and backbone.is_vit and getattr(net, "global_pool", "") == "token"
    if network.drop_path:
        options["drop_path_rate"] = network.drop_path
    if pooled:
        options["global_pool"] = "avg"
    if network.side and getattr(getattr(net, "patch_embed", None), "img_size", None) is not None:
        options["img_size"] = network.side
    if network.window and hasattr(net, "layers"):
        options["window_size"] = network.window
    if options == backbone.options:
        return copy.deepcopy(backbone)
    changes = {key: value for key, value in options.items() if backbone.options.get(key) != value}
    refused = f"architecture {backbone.arch!r} cannot be built with {changes}"
    try:
        own = Backbone(backbone.arch, options, backbone.stem, backbone.in_chans)
    except (AssertionError, ValueError, NotImplementedError) as error:
        raise UsageError(f"{refused} ({type(error).__name__})") from None
    try:
        missing, left = own.net.load_state_dict(resized(backbone, own), strict=False)
    except RuntimeError as error:
        raise UsageError(f"{refused}: {str(error).splitlines()[1].strip()}") from None
    # The new norm starts as the identity, the old one is not used: official MAE, main_finetune.py with global_pool.
    odd = [name for name in (*missing, *left) if not (pooled and name.startswith(("fc_norm.", "norm.")))]
    if odd:
        raise UsageError(f"{refused}: {odd[0]!r} has no counterpart")
    return own.to(next(backbone.parameters()).device).train(backbone.training)


def resized(backbone: Backbone, own: Backbone) -> dict[str, torch.Tensor]:
    """Tensors of a network, with Swin's tables of relative positions resampled to the windows of another one."""
    from timm.layers import resize_rel_pos_bias_table_simple

    state = dict(backbone.net.state_dict())
    for name, wanted in own.net.state_dict().items():
        if name.endswith("relative_position_bias_table") and name in state and state[name].shape != wanted.shape:
            window = own.net.get_submodule(name.rpartition(".")[0]).window_size
            state[name] = resize_rel_pos_bias_table_simple(state[name], new_window_size=window, new_bias_shape=wanted.shape)
    return state


def choosing(train: ImageSet, fraction: float, seed: int) -> tuple[ImageSet, ImageSet, str] | None:
    """Parts of a labelled set to train trials on and to choose on, and a description; None: nothing can be held out.

    A class with a single image is only trained on.
    """
    try:
        rest, val = held_out(train, fraction, seed, keep_small=True)
    except UsageError:
        return None
    assert train.labels is not None
    alone = len(np.unique(train.labels)) - len(np.unique(train.labels[val]))
    note = f" ({alone} classes have too few images to hold any out)" if alone else ""
    return train.subset(rest), train.subset(val), f"{len(val)} held-out labelled images{note}"


def trial(bench: Bench, key: str, position: str, compute: Callable[[str], T]) -> T:
    """The result of one trial, from an earlier interrupted run or computed now; its checkpoint goes when it is kept.

    Args:
        bench: the evaluation.
        key: name of the trial.
        position: which of how many, for the person who waits.
        compute: from the name under which the training resumes to something that JSON can hold.
    """
    bench.reporter.say(f"  {bench.evaluator.name}: {key} ({position})")
    value = bench.once(key, lambda: compute(key))
    shutil.rmtree(bench.out / key, ignore_errors=True)
    return value
