# SPDX-License-Identifier: Apache-2.0
"""From pictures to discrete visual tokens, the targets of CAE and BEiT.

A tokenizer is an input of a recipe: the published one comes from a file that the user has, the codebook is learned from the
training pictures and is called what it is.
"""

from __future__ import annotations

import pickle
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from suite import safeload
from suite.errors import UsageError
from suite.nn.cluster import kmeans
from suite.nn.patches import patchify


class Tokenizer(nn.Module):
    """Base of tokenizers: frozen, always in evaluation mode, float32 whatever the precision around it.

    Attributes:
        title: what a page calls it.
        vocabulary: number of different tokens.
        stride: input pixels per token, along each side.
    """

    title: str
    vocabulary: int
    stride: int

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Tokens of pictures with values in [0, 1] (not normalised): N×3×H×W -> N×L int64, row by row.

        Raises:
            UsageError: the sides do not divide by the stride.
        """
        if x.shape[2] % self.stride or x.shape[3] % self.stride:
            raise UsageError(f"{self.title} needs sides that divide by {self.stride}, not {x.shape[2]}x{x.shape[3]}")
        with torch.autocast(x.device.type, enabled=False):
            return self.tokens(x.float())

    def tokens(self, x: Tensor) -> Tensor:
        """The same without the checks."""
        raise NotImplementedError(f"{type(self).__name__} defines no tokens")

    def train(self, mode: bool = True) -> Tokenizer:
        """Stay in evaluation mode."""
        return super().train(False)


class PatchCodebook(Tokenizer):
    """The nearest of k patches that k-means found in the training pictures: a stand-in that needs no download.

    Tokens say what a patch looks like pixel by pixel; they know nothing of the content that a trained dVAE abstracts.

    Args:
        size: number of codes k.
        stride: side of the patches in pixels.
    """

    title = "k-means patch codebook"
    codes: Tensor

    def __init__(self, size: int = 512, stride: int = 8) -> None:
        super().__init__()
        self.vocabulary, self.stride = size, stride
        self.register_buffer("codes", torch.zeros(size, 3 * stride**2))  # k×(3·side²)

    def fit(self, pictures: Tensor, *, patches: int = 100_000, seed: int = 0) -> PatchCodebook:
        """Learn the codes from N×3×H×W pictures with values in [0, 1], at most `patches` of their patches.

        Raises:
            UsageError: fewer patches than codes.
        """
        rows = patchify(pictures.float(), self.stride).flatten(0, 1)  # (N·L)×(3·side²)
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(rows), generator=generator)[:patches].to(rows.device)
        self.codes.copy_(kmeans(rows[chosen], self.vocabulary, seed=seed).centroids)
        return self

    def tokens(self, x: Tensor) -> Tensor:
        """The code of smallest Euclidean distance."""
        rows = patchify(x, self.stride)  # N×L×(3·side²)
        # |p - c|² without |p|², which is the same for all codes.
        return (self.codes.square().sum(1) - 2 * rows @ self.codes.T).argmin(2)


class _Conv(nn.Module):
    """A padded convolution that names its tensors as the published file does."""

    def __init__(self, wide: int, narrow: int, side: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(narrow, wide, side, side))
        self.b = nn.Parameter(torch.zeros(narrow))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w, self.b, padding=self.w.shape[2] // 2)


class _Block(nn.Module):
    """x + g·(four ReLU-convolutions through a bottleneck of a quarter of the width)."""

    def __init__(self, wide: int, narrow: int, gain: float) -> None:
        super().__init__()
        self.gain, hidden = gain, narrow // 4
        self.id_path = _Conv(wide, narrow, 1) if wide != narrow else nn.Identity()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        shapes = [(wide, hidden, 3), (hidden, hidden, 3), (hidden, hidden, 3), (hidden, narrow, 1)]
        for i, shape in enumerate(shapes, 1):
            layers[f"relu_{i}"], layers[f"conv_{i}"] = nn.ReLU(), _Conv(*shape)
        self.res_path = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.id_path(x) + self.gain * self.res_path(x)


class DalleTokenizer(Tokenizer):
    """The encoder of DALL-E's discrete VAE (Ramesh et al., ICML 2021, arXiv 2102.12092, appendix A), stride 8.

    Args:
        width: channels of the first group; the published encoder has 256.
        vocabulary: the published encoder has 8192 tokens.
    """

    title = "DALL-E dVAE encoder"

    def __init__(self, width: int = 256, vocabulary: int = 8192) -> None:
        super().__init__()
        self.vocabulary, self.stride = vocabulary, 8
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        blocks: OrderedDict[str, nn.Module] = OrderedDict(input=_Conv(3, width, 7))
        for group in range(1, 5):
            wide, narrow = widths[group - 1], widths[group]
            parts: OrderedDict[str, nn.Module] = OrderedDict(
                block_1=_Block(wide, narrow, 1 / 64), block_2=_Block(narrow, narrow, 1 / 64)
            )
            if group < 4:
                parts["pool"] = nn.MaxPool2d(2)
            blocks[f"group_{group}"] = nn.Sequential(parts)
        blocks["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=_Conv(widths[4], vocabulary, 1)))
        self.blocks = nn.Sequential(blocks)
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, path: Path) -> DalleTokenizer:
        """Read the published encoder from a local file: its state dict, or `encoder.pkl`, from which nothing is run.

        Raises:
            UsageError: missing, not such a file, or tensors that do not fit.
        """
        state = read_module_state(Path(path))
        first, last = state.get("blocks.input.w"), state.get("blocks.output.conv.w")
        if first is None or last is None or first.ndim != 4 or last.ndim != 4:
            raise UsageError(f"{str(path)!r} is no DALL-E encoder (no 'blocks.input.w' and 'blocks.output.conv.w' inside)")
        found = cls(first.shape[0], last.shape[0])
        try:
            found.load_state_dict(state)
        except RuntimeError as error:
            raise UsageError(f"{str(path)!r} is no DALL-E encoder: {str(error).splitlines()[1].strip()}") from None
        return found.float()

    def tokens(self, x: Tensor) -> Tensor:
        """The most likely token at every place."""
        logits = self.blocks(0.8 * x + 0.1)  # N×V×H/8×W/8; values are pulled inside (0, 1), as the dVAE was trained
        return logits.argmax(1).flatten(1)


PICKLED = (
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.pooling.MaxPool2d",
)
"""Classes that the published, pickled encoder consists of."""


def read_module_state(path: Path) -> dict[str, Tensor]:
    """Named tensors of a state dict, or of the published encoder that was pickled as a module.

    In the second case every class that the pickle names is replaced by one that only keeps what it is given, so neither
    the classes' code nor any other is run.

    Raises:
        UsageError: missing, damaged, or a pickle that asks for more.
    """
    try:
        return safeload.read_state(path)[0]
    except UsageError as refusal:
        recorded = _recorded(path)
        state = {} if recorded is None else dict(_tensors(recorded))
        if not state:
            raise refusal
        return state


class _Record:
    """What stands for a module while its pickle is read."""

    parts: dict[str, Any] | None = None

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.parts = state


def _recorded(path: Path) -> _Record | None:
    record = type("Record", (_Record,), {})  # anew for each file: a pickle may set attributes on what it is given
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([(record, name) for name in PICKLED]):
            warnings.simplefilter("ignore")
            tree = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError, TypeError, AttributeError, KeyError):
        return None
    return tree if isinstance(tree, _Record) else None


def _tensors(record: _Record, prefix: str = "", depth: int = 0) -> dict[str, Tensor]:
    """Parameters and buffers below a recorded module, by dotted name."""
    found: dict[str, Tensor] = {}
    parts = record.parts if isinstance(record.parts, dict) and depth < 16 else {}
    for kind in ("_parameters", "_buffers", "_modules"):
        members = parts.get(kind)
        for name, value in members.items() if isinstance(members, dict) else ():
            if isinstance(value, Tensor):
                found[f"{prefix}{name}"] = value.detach()
            elif isinstance(value, _Record):
                found |= _tensors(value, f"{prefix}{name}.", depth + 1)
    return found


def sample_pictures(images: Any, side: int, count: int = 1000, seed: int = 0) -> Tensor:
    """Some pictures of an ImageSet, resized to side×side, in [0, 1]: N×3×side×side, to fit a codebook on.

    Args:
        images: an ImageSet.
        side: in pixels; the aspect ratio is not kept.
        count: how many at most.
        seed: of the choice.
    """
    from suite.views import resample

    chosen = np.random.default_rng(seed).permutation(len(images))[:count]
    rows = []
    for i in sorted(chosen.tolist()):
        picture = torch.from_numpy(np.ascontiguousarray(images.images[i])).permute(2, 0, 1)[None]  # 1×3×H×W
        box = torch.tensor([[0, 0, *picture.shape[2:]]])
        rows.append(resample(picture, box, (side, side), "bilinear"))
    return torch.cat(rows)
