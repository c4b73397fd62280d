# SPDX-License-Identifier: Apache-2.0
"""One interface over timm: pooled vector, stage maps, strides; saved as safetensors with what is needed to rebuild."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from suite.errors import UsageError, unknown
from suite.nn.sobel import Sobel
from suite.store import write_bytes

FORMAT = "ssl-suite-backbone"


class Backbone(nn.Module):
    """An image network without its classifier.

    Args:
        arch: a timm model name.
        options: passed to `timm.create_model`.
        stem: what a ResNet starts with. `cifar`: first convolution with stride 1, no max-pooling; `nopool`: stride 2,
            no max-pooling; `sobel`: the usual one on edges instead of colours (DeepCluster).
        in_chans: input channels.

    Attributes:
        dim: width of the pooled vector.
        stage_dims: channels of each stage. ResNet-like networks have five: the stem after its ReLU and before pooling,
            then the four residual stages. Vision transformers have one per block.
        strides: input pixels per output pixel, per stage.

    Raises:
        UsageError: unknown architecture (with the nearest name), options it does not take, or a small stem on a
            network without a ResNet stem.
    """

    def __init__(self, arch: str, options: Mapping[str, Any] | None = None, stem: str = "imagenet", in_chans: int = 3) -> None:
        super().__init__()
        self.arch, self.options, self.stem, self.in_chans = arch, dict(options or {}), stem, in_chans
        import timm

        check_architecture(arch)
        try:
            self.net: Any = timm.create_model(arch, pretrained=False, num_classes=0, in_chans=in_chans, **_tuples(self.options))
        except TypeError as error:
            raise UsageError(f"architecture {arch!r} does not take these options: {error}") from None
        if stem != "imagenet":
            _restem(self.net, arch, stem)
        if not hasattr(self.net, "forward_intermediates"):
            raise UsageError(f"architecture {arch!r} gives no intermediate features in timm; choose another")
        net: Any = self.net
        self.dim: int = net.num_features
        self.stage_dims, self.strides = self._probe()

    @property
    def is_vit(self) -> bool:
        """True for plain transformers: every block keeps one token per patch."""
        return hasattr(self.net, "blocks") and hasattr(self.net, "patch_embed") and len(set(self.strides)) == 1

    def _probe(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        side = self.input_side()
        was_training = self.net.training
        with torch.no_grad():
            maps = self.net.eval().forward_intermediates(
                torch.zeros(1, self.in_chans, side, side), intermediates_only=True, output_fmt="NCHW"
            )
        self.net.train(was_training)
        return tuple(m.shape[1] for m in maps), tuple(round(side / m.shape[-1]) for m in maps)

    def input_side(self, default: int = 64) -> int:
        """The side that a network of fixed input size asks for, or `default` for one that takes any."""
        embed = getattr(self.net, "patch_embed", None)
        size = getattr(embed, "img_size", None)
        return int(size[0]) if size is not None else default

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features: N×3×H×W -> N×dim."""
        return self.net(x)

    def stages(self, x: Tensor, indices: Sequence[int] | None = None) -> list[Tensor]:
        """Feature maps N×C×H×W of the stages in `indices` (default all), in ascending order."""
        chosen = list(range(len(self.stage_dims))) if indices is None else sorted(indices)
        return self.net.forward_intermediates(x, indices=chosen, intermediates_only=True, output_fmt="NCHW")

    def pooled_and_stages(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Pooled vector and all stage maps from one pass."""
        final, maps = self.net.forward_intermediates(x, output_fmt="NCHW")
        return self.net.forward_head(final, pre_logits=True), maps

    def sha256(self) -> str:
        """Hash of names, types, shapes and bytes of all tensors, independent of any file around them."""
        return hash_state(self.net.state_dict())

    def parameters_count(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.net.parameters())

    def describe(self) -> dict[str, str]:
        """What `load` needs to rebuild the network, as safetensors metadata."""
        return {
            "format": FORMAT,
            "arch": self.arch,
            "options": json.dumps(self.options, sort_keys=True, default=list),
            "stem": self.stem,
            "in_chans": str(self.in_chans),
        }

    def save(self, path: Path, meta: Mapping[str, str] | None = None) -> str:
        """Write the weights atomically.

        Args:
            path: target file.
            meta: more metadata (recipe, run id, training size).

        Returns:
            sha256 of the tensors.
        """
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.net.state_dict().items()}
        write_bytes(path, save(state, metadata={**self.describe(), **(meta or {})}))
        return hash_state(state)

    @classmethod
    def load(cls, path: Path) -> Backbone:
        """Rebuild a backbone that `save` wrote; every tensor must be there and fit.

        Raises:
            UsageError: not such a file, truncated, or tensors that do not fit.
        """
        meta = read_metadata(path)
        if meta.get("format") != FORMAT:
            raise UsageError(f"{str(path)!r} is not a backbone of this project (no {FORMAT!r} in its metadata)")
        try:
            backbone = cls(meta["arch"], json.loads(meta["options"]), meta["stem"], int(meta.get("in_chans", "3")))
        except (KeyError, ValueError) as error:
            raise UsageError(f"{str(path)!r} has broken metadata ({type(error).__name__}: {error})") from None
        with safe_open(str(path), framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        try:
            backbone.net.load_state_dict(state, strict=True)
        except RuntimeError as error:
            raise UsageError(f"{str(path)!r} does not fit its own architecture: {str(error).splitlines()[1].strip()}") from None
        return backbone


def is_architecture(arch: str) -> bool:
    """Whether timm has a model of this name."""
    import timm  # takes seconds, which listing, checking and reporting need not wait for

    return timm.is_model(arch)


def check_architecture(arch: str) -> None:
    """Raise UsageError unless timm has a model of this name."""
    import timm

    if not is_architecture(arch):
        raise unknown("architecture", arch, timm.list_models())


def is_transformer(arch: str) -> bool:
    """Whether a timm model is built of attention."""
    import timm

    family = timm.models.model_entrypoint(arch).__module__.rpartition(".")[2]
    return "transformer" in family or family in ("beit", "cait", "deit", "eva", "xcit")


def read_metadata(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file.

    Raises:
        UsageError: missing, truncated or not safetensors.
    """
    if not Path(path).is_file():
        raise UsageError(f"weights file {str(path)!r} does not exist")
    try:
        with safe_open(str(path), framework="pt") as file:
            return file.metadata() or {}
    except Exception as error:  # safetensors raises its own untyped errors
        raise UsageError(f"{str(path)!r} is truncated or not a safetensors file ({error})".splitlines()[0]) from None


def hash_state(state: Mapping[str, Tensor]) -> str:
    """sha256 over sorted names, dtypes, shapes and bytes of a state dict."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no tuples and timm's builders compare with them."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}


def _restem(net: Any, arch: str, stem: str) -> None:
    """Another ResNet stem. For small pictures: no pooling; for `cifar` stride 1 too, and a 7×7 convolution becomes 3×3."""
    conv, pool = getattr(net, "conv1", None), getattr(net, "maxpool", None)
    if conv is None or pool is None:
        raise UsageError(f"architecture {arch!r} has no ResNet stem, so stem={stem!r} does not apply")
    if stem == "sobel":
        net.conv1 = nn.Sequential(Sobel(), *_two_channels(conv))
        return
    net.maxpool = nn.Identity()
    if stem == "nopool":
        return
    if isinstance(conv, nn.Sequential):
        first: Any = conv[0]
        first.stride = (1, 1)
        return
    net.conv1 = nn.Conv2d(conv.in_channels, conv.out_channels, 3, stride=1, padding=1, bias=conv.bias is not None)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")


def _two_channels(conv: nn.Module) -> list[nn.Module]:
    """A stem's convolutions, the first of them remade for two input channels."""
    first, *rest = list(conv) if isinstance(conv, nn.Sequential) else [conv]
    assert isinstance(first, nn.Conv2d)
    shape: Any = {name: getattr(first, name) for name in ("kernel_size", "stride", "padding")}
    new = nn.Conv2d(2, first.out_channels, bias=first.bias is not None, **shape)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    return [new, *rest]
