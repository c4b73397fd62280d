# SPDX-License-Identifier: Apache-2.0
"""Features extracted once and shared by every evaluator that freezes the backbone.

One pass over the images gives all layers that are asked for, straight into a store on disk, keyed by weights, data
fingerprint, split, transform, layer, precision and number of the augmented copy. Labels play no part.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from suite.backbone import Backbone
from suite.data.imageset import ImageSet
from suite.data.loader import Loader
from suite.errors import JobError, SuiteError, UsageError
from suite.featurestore import FeatureStore
from suite.layers import five_layers, parse_layer, pool
from suite.views import View

__all__ = ["FeatureStore", "cached", "extract", "fitting", "five_layers", "key", "parse_layer", "pool"]

Progress = Callable[[int], AbstractContextManager[Callable[[int], object]]]
T = TypeVar("T")
VERSION = 2
"""Of what extraction computes: part of every key."""
AUTOCAST = {"bf16": torch.bfloat16, "16": torch.float16}


def key(weights: str, images: ImageSet, view: View, layer: str, precision: str, epoch: int = 0) -> str:
    """Name of an entry: everything that could change a feature.

    Args:
        weights: says which network, hash and architecture.
        images: the set; its fingerprint and split count.
        view: how its pictures are prepared; its operations and their settings count.
        layer: see `parse_layer`.
        precision: of the forward pass.
        epoch: what a random view's draws are made from: the number of an augmented copy.
    """
    parts = [VERSION, weights, images.fingerprint, images.split, repr(view), layer, precision, epoch]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40]


def cached(
    store: FeatureStore,
    backbone: Backbone,
    images: ImageSet,
    view: View,
    layers: Sequence[str],
    *,
    weights: str,
    also: Sequence[str] = (),
    epoch: int = 0,
    precision: str = "32",
    device: torch.device,
    batch: int = 256,
    workers: int = 0,
    progress: Progress = lambda total: contextlib.nullcontext(lambda n: None),
) -> dict[str, np.ndarray]:
    """Features from the store; what is missing is extracted into it, all layers in one pass, by one process at a time.

    Args:
        store: where they are kept.
        backbone: the network.
        images: the set.
        view: how its pictures are prepared.
        layers: which features to return.
        weights: hash of the backbone's weights.
        also: layers that somebody will ask for later: extracted too when a pass is needed anyway, if they can be.
        epoch: number of the augmented copy, for a random view.
        precision: `32`, `bf16` or `16`, of the forward pass.
        device: where it runs.
        batch: images at a time.
        workers: decoding processes.
        progress: opened with the number of images when there is something to extract; gives what counts them.

    Returns:
        Layer to N×d float32, read-only and memory-mapped: may be larger than memory.

    Raises:
        UsageError: unknown layer, unreadable picture.
        JobError: features that are not finite, full disk.
    """
    known = f"{weights} {json.dumps(backbone.describe(), sort_keys=True)}"  # a stem is no tensor, yet changes features
    keys = {layer: key(known, images, view, layer, precision, epoch) for layer in [*layers, *also]}

    def stored(names: Iterable[str]) -> dict[str, np.ndarray]:
        return {layer: matrix for layer in names if (matrix := store.get(keys[layer])) is not None}

    def fill(names: list[str]) -> dict[str, np.ndarray]:
        with progress(len(images)) as advance:
            blocks = _blocks(backbone, images, view, names, device, batch, workers, epoch, precision, advance)
            with contextlib.closing(blocks):
                return store.create({layer: keys[layer] for layer in names}, len(images), blocks)

    found = stored(dict.fromkeys(layers))
    if len(found) == len(set(layers)):
        return found
    with store.lock(key(known, images, view, "*", precision, epoch)):
        found |= stored(layer for layer in keys if layer not in found)  # another process may have been faster
        missing = [layer for layer in keys if layer not in found]
        own = [layer for layer in missing if layer in layers]
        if own:
            try:
                found |= fill(missing)
            except SuiteError:
                if own == missing:
                    raise
                found |= fill(own)  # what somebody else wants must not fail this one
    return {layer: found[layer] for layer in layers}


def extract(
    backbone: Backbone,
    images: ImageSet,
    view: View,
    layers: Sequence[str],
    *,
    device: torch.device,
    batch: int = 256,
    workers: int = 0,
    epoch: int = 0,
    precision: str = "32",
    advance: Callable[[int], object] = lambda n: None,
) -> dict[str, np.ndarray]:
    """Features of every image in memory, float32, in the set's order, with the backbone in evaluation mode.

    A batch that does not fit into the GPU's memory is halved instead of ending the run, and those after it too. Arguments and
    errors as for `cached`; `advance` is called with the number of images done since the last call.

    Returns:
        Layer name to N×d.
    """
    out: dict[str, np.ndarray] = {}
    done = 0
    for block in _blocks(backbone, images, view, list(layers), device, batch, workers, epoch, precision, advance):
        for name, values in block.items():
            if name not in out:
                out[name] = np.empty((len(images), values.shape[1]), np.float32)
            out[name][done : done + len(values)] = values
        done += len(next(iter(block.values())))
    return out


def _blocks(
    backbone: Backbone,
    images: ImageSet,
    view: View,
    layers: Sequence[str],
    device: torch.device,
    batch: int,
    workers: int,
    epoch: int,
    precision: str,
    advance: Callable[[int], object],
) -> Generator[dict[str, np.ndarray], None, None]:
    """Float32 features n×d of every layer, batch after batch."""
    for layer in layers:
        parse_layer(layer, len(backbone.stage_dims))
    if not len(images):
        raise UsageError(f"{images.name}/{images.split} has no images to extract features of")
    was_training = backbone.training
    backbone.eval().to(device)
    channels_last = not backbone.is_vit
    if channels_last:
        backbone.to(memory_format=torch.channels_last)
    loader = Loader(images, (view,), batch, device=device, workers=workers, shuffle=False, channels_last=channels_last)
    done, most = 0, batch
    try:
        for b in loader.epoch(epoch):
            parts, most = fitting(lambda x: _forward(backbone, x, layers, precision), b.views[0], most)
            block = {name: np.concatenate([part[name] for part in parts]) for name in layers}
            done += len(b.views[0])
            _check_finite(block, done, len(images))
            yield block
            advance(len(b.views[0]))
    finally:
        backbone.train(was_training)


def _check_finite(block: Mapping[str, np.ndarray], done: int, total: int) -> None:
    """Raise JobError at the first batch with a feature that is NaN or infinite; earlier batches had none."""
    for name, values in block.items():
        bad = len(values) - int(np.isfinite(values).all(1).sum())
        if bad:
            seen = f"{total}" if done == total else f"the first {done}"
            raise JobError(f"features of {name} are not finite for {bad} of {seen} images: the weights are broken")


def fitting(forward: Callable[[Tensor], T], x: Tensor, most: int) -> tuple[list[T], int]:
    """What `forward` makes of a batch in parts of at most `most` images, halved until they fit into GPU memory.

    Returns:
        One value per part, and the size that fitted.

    Raises:
        JobError: a single image does not fit.
    """
    while True:
        try:
            return [forward(part) for part in x.split(most)], most
        except torch.cuda.OutOfMemoryError as error:
            if most == 1:
                raise JobError(f"one image of {'x'.join(map(str, x.shape[1:]))} does not fit into GPU memory") from error
            most = -(-min(most, len(x)) // 2)
        torch.cuda.empty_cache()  # here, where the error and what its traceback holds have gone


@torch.no_grad()
def _forward(backbone: Backbone, x: Tensor, layers: Sequence[str], precision: str) -> dict[str, np.ndarray]:
    with torch.autocast(x.device.type, dtype=AUTOCAST.get(precision), enabled=precision != "32"):
        if all(name == "pooled" for name in layers):
            out = dict.fromkeys(layers, backbone(x))
        else:
            pooled, maps = backbone.pooled_and_stages(x)
            out = {name: pool(name, pooled, maps) for name in layers}
    return {name: value.float().cpu().numpy() for name, value in out.items()}
