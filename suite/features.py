# SPDX-License-Identifier: Apache-2.0
"""Features extracted once and shared by every evaluator that freezes the backbone.

An entry is one layer's N×d float32 matrix, keyed by weights, data fingerprint, split, transform, layer and precision; it
lives on disk, memory-mapped, and the least recently used entries go when the store grows past its bound.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from suite.backbone import Backbone
from suite.data.imageset import ImageSet
from suite.data.loader import Loader
from suite.errors import UsageError
from suite.store import atomic
from suite.views import View

LAYER = re.compile(r"pooled|stage(\d+)(?:@(\d+))?")


@dataclass(frozen=True)
class FeatureStore:
    """Feature matrices on disk.

    Attributes:
        root: folder.
        limit: bytes it may hold.
    """

    root: Path
    limit: int = 8 << 30

    def get(self, key: str) -> np.ndarray | None:
        """A memory-mapped matrix, or None when it is not there or damaged (then it is removed)."""
        path, stamp = self._paths(key)
        try:
            features = np.load(path, mmap_mode="r", allow_pickle=False)
            if json.loads(stamp.read_text()) != _fingerprint(features):
                raise ValueError("checksum")
            os.utime(path)
            return features
        except (OSError, ValueError, EOFError):
            path.unlink(missing_ok=True)
            stamp.unlink(missing_ok=True)
            return None

    def put(self, key: str, features: np.ndarray) -> np.ndarray:
        """Write a matrix atomically and make room for it; several processes may do so at once."""
        path, stamp = self._paths(key)
        with atomic(path) as file:
            np.save(file, features, allow_pickle=False)
        with atomic(stamp) as file:
            file.write(json.dumps(_fingerprint(features)).encode())
        self._trim(keep=path)
        return features

    def _paths(self, key: str) -> tuple[Path, Path]:
        return self.root / f"{key}.npy", self.root / f"{key}.json"

    def _trim(self, keep: Path) -> None:
        entries = []
        for path in self.root.glob("*.npy"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            entries.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.limit:
                break
            if path != keep:
                path.unlink(missing_ok=True)
                path.with_suffix(".json").unlink(missing_ok=True)
                total -= size


def _fingerprint(features: np.ndarray) -> dict[str, object]:
    """Shape and a checksum over evenly spaced rows: finds truncation and zeroed pages without reading everything."""
    rows = np.unique(np.linspace(0, len(features) - 1, num=min(64, len(features))).astype(int))
    return {"shape": list(features.shape), "crc": zlib.crc32(np.ascontiguousarray(features[rows]).tobytes())}


def key(weights: str, images: ImageSet, view: View, layer: str, precision: str) -> str:
    """Name of an entry: everything that could change a feature."""
    parts = [weights, images.fingerprint, images.split, repr(view), layer, precision]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40]


def parse_layer(name: str, stages: int) -> tuple[int | None, int]:
    """`pooled` -> (None, 1); `stage3` -> (2, 1); `stage3@4` -> (2, 4).

    Raises:
        UsageError: not a layer name, or a stage that the network does not have.
    """
    match = LAYER.fullmatch(name)
    if match is None:
        raise UsageError(f"unknown layer {name!r} (valid: pooled, stage1 to stage{stages}, stageN@G)")
    if match[1] is None:
        return None, 1
    if not 1 <= int(match[1]) <= stages:
        raise UsageError(f"layer {name!r}: this network has stages 1 to {stages}")
    return int(match[1]) - 1, int(match[2] or 1)


@torch.no_grad()
def extract(
    backbone: Backbone,
    images: ImageSet,
    view: View,
    layers: Sequence[str],
    *,
    device: torch.device,
    batch: int = 256,
    workers: int = 0,
    advance: Callable[[int], None] = lambda n: None,
) -> dict[str, np.ndarray]:
    """Features of every image, float32, in the set's order, with the backbone in evaluation mode.

    A batch that does not fit into the GPU's memory is halved instead of ending the run.

    Returns:
        Layer name to N×d.
    """
    wanted = {layer: parse_layer(layer, len(backbone.stage_dims)) for layer in layers}
    was_training = backbone.training
    backbone.eval().to(device)
    if not backbone.is_vit:
        backbone.to(memory_format=torch.channels_last)
    out: dict[str, np.ndarray] = {}
    done = 0
    for x in _batches(images, view, batch, device, workers, not backbone.is_vit):
        for name, value in _halving(backbone, x, wanted).items():
            values = value.float().cpu().numpy()
            out.setdefault(name, np.empty((len(images), values.shape[1]), np.float32))[done : done + len(values)] = values
        done += len(x)
        advance(len(x))
    backbone.train(was_training)
    return out


def _batches(
    images: ImageSet, view: View, batch: int, device: torch.device, workers: int, channels_last: bool
) -> Iterator[Tensor]:
    loader = Loader(images, (view,), batch, device=device, workers=workers, shuffle=False, channels_last=channels_last)
    return (b.views[0] for b in loader.epoch(0))


def _halving(backbone: Backbone, x: Tensor, wanted: dict[str, tuple[int | None, int]]) -> dict[str, Tensor]:
    try:
        return _forward(backbone, x, wanted)
    except torch.cuda.OutOfMemoryError:
        if len(x) == 1:
            raise
        torch.cuda.empty_cache()
        first, second = (_halving(backbone, half, wanted) for half in x.chunk(2))
        return {name: torch.cat([first[name], second[name]]) for name in first}


def _forward(backbone: Backbone, x: Tensor, wanted: dict[str, tuple[int | None, int]]) -> dict[str, Tensor]:
    if all(stage is None for stage, _ in wanted.values()):
        return {name: backbone(x) for name in wanted}
    pooled, maps = backbone.pooled_and_stages(x)
    return {
        name: pooled if stage is None else F.adaptive_avg_pool2d(maps[stage], side).flatten(1)
        for name, (stage, side) in wanted.items()
    }
