# SPDX-License-Identifier: Apache-2.0
"""A view: operations in order, over a whole batch or shared between a decoding worker and the device."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from suite.draws import Draws
from suite.views.geometry import Geometric, HorizontalFlip, RandomResizedCrop, Resize
from suite.views.op import Op
from suite.views.resample import to_float


@dataclass(frozen=True)
class View:
    """A chain of operations: what a method sees of an image.

    Geometric operations at the start may run elsewhere: `crop` does them with Pillow on one picture, `rest` does what remains,
    and with the same draws both together equal the whole view up to the rounding of pixels.
    """

    ops: tuple[Op, ...]
    like: int | None = None
    "The view of the image, counted from 0, whose random numbers this one shares: the same crop at another size, say."

    def stream(self, draws: Draws, place: int) -> Draws:
        """This view's own random numbers, when it is view number `place` of the image."""
        return draws.fold(place if self.like is None else self.like)

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """N×3×H×W uint8 (or float in [0, 1]) to N×3×S×S float32."""
        return self._run(images, draws, 0)

    def rest(self, images: Tensor, draws: Draws) -> Tensor:
        """The operations after the leading geometric ones, on N×3×S×S uint8."""
        return self._run(images, draws, self._leading)

    def crop(self, image: Image.Image, draws: Draws) -> np.ndarray:
        """The leading geometric operations on one picture of any size: S×S×3 uint8; `draws` holds one sample."""
        for i, op in enumerate(self.ops[: self._leading]):
            assert isinstance(op, Geometric)
            image = op.crop(image, self._draws(draws, i))
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))

    @property
    def first(self) -> Geometric | None:
        """The geometric operation at the start, if there is one; it draws from the view's own draws."""
        op = self.ops[0] if self.ops else None
        return op if isinstance(op, Geometric) else None

    @property
    def size(self) -> int | None:
        """Side of the square result; None where it depends on the image."""
        geometric = [op for op in self.ops if isinstance(op, Geometric)]
        return None if not geometric or isinstance(geometric[-1], Resize) else geometric[-1].size

    @property
    def _leading(self) -> int:
        """How many geometric operations stand at the start."""
        return sum(1 for _ in itertools.takewhile(lambda op: isinstance(op, Geometric), self.ops))

    def _draws(self, draws: Draws, i: int) -> Draws:
        """Each operation has draws of its own; the first has the view's, so that `first.boxes(draws, ...)` agrees."""
        return draws.fold(f"{i}:{type(self.ops[i]).__name__}") if i else draws

    def _run(self, images: Tensor, draws: Draws, start: int) -> Tensor:
        if len(draws) != len(images):
            raise ValueError(f"{len(images)} images with draws for {len(draws)}")
        last = self._leading - 1
        flips = self._flips() if start <= last else []
        images = images if start <= last else to_float(images)
        with torch.autocast(images.device.type, enabled=False):
            for i in range(start, len(self.ops)):
                if i in flips:
                    continue
                sizes = torch.tensor([images.shape[2:]], device=draws.key.device).expand(len(images), 2)
                params = self.ops[i].draw(self._draws(draws, i), sizes)
                if i == last and flips:
                    on = torch.stack([self.ops[j].draw(self._draws(draws, j), sizes)["on"] for j in flips])
                    params["flip"] = on.sum(0) % 2 == 1
                images = self.ops[i].update(images, params)
        return images

    def _flips(self) -> list[int]:
        """Flips that can move into the last leading crop for free: nothing between minds mirroring."""
        after = itertools.takewhile(lambda i: self.ops[i].mirrors, range(self._leading, len(self.ops)))
        return [i for i in after if isinstance(self.ops[i], HorizontalFlip)]


def multi_crop(
    *ops: Op,
    sizes: Sequence[int] = (224, 96),
    numbers: Sequence[int] = (2, 6),
    scales: Sequence[tuple[float, float]] = ((0.14, 1.0), (0.05, 0.14)),
    interpolation: str = "bilinear",
) -> tuple[View, ...]:
    """Multi-crop (Caron et al., SwAV, 2020, section 3.3): `numbers[i]` views of side `sizes[i]` with area in `scales[i]`.

    Args:
        ops: what follows the crop, the same for all.
        sizes: side of each kind of crop.
        numbers: how many of each kind.
        scales: range of the area fraction of each kind.
        interpolation: of all crops.
    """
    crops = zip(sizes, numbers, scales, strict=True)
    return tuple(
        View((RandomResizedCrop(size, scale, interpolation=interpolation), *ops))
        for size, number, scale in crops
        for _ in range(number)
    )
