# SPDX-License-Identifier: Apache-2.0
"""Weights from anywhere: load all of a backbone or nothing, say what was found, hand it on in other forms.

`safeload` reads the file, `keymaps` has places and names, `archs` guesses the network, `coverage` compares.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from suite.backbone import FORMAT, Backbone
from suite.coverage import Coverage, Wanted, compare, notes, refusal, search, under
from suite.errors import UsageError, unknown
from suite.keymaps import NAMINGS, Naming
from suite.safeload import Origin, read_state
from suite.store import write_bytes

TARGETS = ("torchvision", "timm", "detectron2", "mmpretrain")


def load_backbone(
    path: Path,
    arch: str | None = None,
    options: Mapping[str, Any] | None = None,
    stem: str | None = None,
    prefix: str | None = None,
) -> tuple[Backbone, Coverage]:
    """Rebuild the backbone that a weights file holds, whole or not at all.

    Args:
        path: our own file, or a checkpoint of any project in `keymaps`.
        arch: timm name; default: what the shapes say.
        options: for timm; default: what the shapes say.
        stem: `imagenet` or `cifar`; default: what the shapes say.
        prefix: what stands before the backbone's names; default: the first that fits in `keymaps.SOURCES`.

    Raises:
        UsageError: unreadable or refused file, unknown architecture, or backbone tensors that are missing or
            do not fit.
    """
    state, origin = read_state(path)
    if origin.metadata.get("format") == FORMAT:
        return _load_own(origin, state, arch, stem)
    wanted = Wanted(arch, options, stem)
    found = list(search(state, wanted))
    if arch is None and not any(f.guess for f in found):
        raise UsageError(f"cannot infer the architecture of {str(path)!r}; pass --arch NAME (a timm model name)")
    fits = [(f, c) for f in found if (c := compare(f, str(path), state, wanted))]
    chosen = fits if prefix is None else under(fits, prefix)
    whole = sorted((fit for fit in chosen if fit[1].complete), key=lambda fit: fit[0].rank)
    if not whole or (len({f.prefix for f, _ in whole}) > 1 and whole[0][0].source is None):
        guess = next((f.guess[0] for f in sorted(found, key=lambda f: f.rank) if f.guess), None)
        raise refusal(str(path), wanted, prefix, [c for _, c in chosen], [c for _, c in fits], guess)
    best, coverage = whole[0]
    backbone = wanted.network(best.guess)
    assert backbone is not None  # it was compared with
    target = backbone.net.state_dict()
    backbone.net.load_state_dict({k: best.state.get(k, torch.zeros_like(t)).to(t.dtype) for k, t in target.items()})
    return backbone, replace(coverage, notes=notes(best, backbone, [f.prefix for f, _ in whole[1:]]))


def _load_own(
    origin: Origin, state: Mapping[str, Tensor], arch: str | None = None, stem: str | None = None
) -> tuple[Backbone, Coverage]:
    path = str(origin.path)
    try:
        backbone = Backbone.load(origin.path)
    except (KeyError, ValueError) as error:
        raise UsageError(f"{path!r} has broken metadata ({type(error).__name__}: {error})") from None
    if arch is not None and arch != backbone.arch:
        raise UsageError(f"{path!r} holds a {backbone.arch}, not a {arch}; leave --arch out")
    if stem is not None and stem != backbone.stem:
        raise UsageError(f"{path!r} has a {backbone.stem} stem, not {stem}; leave --stem out")
    total = sum(not name.endswith("num_batches_tracked") for name in state)
    coverage = Coverage(path, "ssl-suite", backbone.arch, "", total, total, options=backbone.options, stem=backbone.stem)
    return backbone, coverage


@dataclass(frozen=True)
class Inspection:
    """What a weights file holds, whether or not it can be loaded.

    Attributes:
        source: the file.
        format: `safetensors`, `torch` or `numpy pickle`.
        containers: dotted path and number of tensors of each dict of tensors.
        backbones: prefix, kind and number of tensors of what looks like a backbone, preferred first.
        coverage: of the place that would be loaded, or of the closest; None when no architecture is clear.
        metadata: of a safetensors file.
        sha256: of the tensors, for our own files.
    """

    source: str
    format: str
    containers: tuple[tuple[str, int], ...]
    backbones: tuple[tuple[str, str, int], ...]
    coverage: Coverage | None
    metadata: Mapping[str, str]
    sha256: str = ""

    def report(self) -> list[str]:
        """Plain-text lines."""
        lines = [f"file        {self.source} ({self.format})"]
        lines += [f"container   {name or '(top)'}: {n} tensors" for name, n in self.containers]
        lines += [f"backbone    prefix {prefix!r}: {n} tensors, {kind}" for prefix, kind, n in self.backbones]
        lines += [f"metadata    {key}: {value}" for key, value in sorted(self.metadata.items())]
        if self.sha256:
            lines.append(f"sha256      {self.sha256} (of the tensors)")
        if self.coverage is None:
            return [*lines, "network     not clear from the shapes; pass --arch NAME"]
        return lines + self.coverage.report()[1:]


def inspect(path: Path, arch: str | None = None) -> Inspection:
    """Describe a weights file.

    Args:
        path: any file that `safeload.read_state` reads.
        arch: compare with this network in place of the guessed one.

    Raises:
        UsageError: unreadable or refused file, or unknown architecture.
    """
    state, origin = read_state(path)
    if origin.metadata.get("format") == FORMAT:
        backbone, coverage = _load_own(origin, state, arch)
        own = (("", "ssl-suite", coverage.total),)
        sha = backbone.sha256()
        return Inspection(str(path), origin.format, origin.containers, own, coverage, origin.metadata, sha)
    wanted = Wanted(arch)
    found = sorted(search(state, wanted), key=lambda f: f.rank)
    fits = [c for f in found if (c := compare(f, str(path), state, wanted))]
    best = next((c for c in fits if c.complete), None) or max(fits, key=lambda c: c.matched, default=None)
    places: dict[str, tuple[str, str, int]] = {}
    for f in found:
        places.setdefault(f.prefix, (f.prefix, f.kind, len(f.state)))
    backbones = tuple(places.values())
    return Inspection(str(path), origin.format, origin.containers, backbones, best, origin.metadata)


def extract(path: Path, out: Path, meta: Mapping[str, str] | None = None, **how: Any) -> Coverage:
    """Write the backbone of any checkpoint as a file of this project.

    Args:
        path: any checkpoint.
        out: target, `.safetensors`.
        meta: more metadata; the name of the source file is added.
        how: `arch`, `options`, `stem`, `prefix` as of `load_backbone`.

    Raises:
        UsageError: as `load_backbone`.
    """
    backbone, coverage = load_backbone(path, **how)
    backbone.save(Path(out), {"source": Path(path).name, "layout": coverage.kind, **(meta or {})})
    return coverage


def publish(path: Path, folder: Path, meta: Mapping[str, str] | None = None, **how: Any) -> Path:
    """Write the backbone as `<arch>-<hash>.safetensors`, the form in which weights are handed out.

    The hash is the first eight digits of the sha256 over the tensors, the one that records and pages show. It
    is whole in the metadata.

    Args:
        path: any checkpoint.
        folder: where to.
        meta: more metadata (recipe, licence, figures).
        how: `arch`, `options`, `stem`, `prefix` as of `load_backbone`.

    Raises:
        UsageError: as `load_backbone`.
    """
    backbone, coverage = load_backbone(path, **how)
    sha = backbone.sha256()
    kept = {k: v for k, v in read_state(path)[1].metadata.items() if coverage.kind == "ssl-suite"}
    target = Path(folder) / f"{backbone.arch}-{sha[:8]}.safetensors"
    backbone.save(target, {**kept, "source": Path(path).name, "sha256": sha, **(meta or {})})
    return target


def convert(path: Path, to: str, out: Path, **how: Any) -> Coverage:
    """Write the backbone of any checkpoint in another project's form.

    `torchvision`: a state dict (.pth) without `fc`. `timm`: a state dict, safetensors if `out` ends so.
    `detectron2`: a pickle of numpy arrays (ResNet), as `MODEL.WEIGHTS` takes it; to train with RGB input and
    `STRIDE_IN_1X1` off.
    `mmpretrain`: `{"meta", "state_dict"}` with `backbone.` before the names, as `load_from` takes it.

    Args:
        path: any checkpoint.
        to: one of TARGETS.
        out: target file.
        how: `arch`, `options`, `stem`, `prefix` as of `load_backbone`.

    Raises:
        UsageError: as `load_backbone`; unknown target; or a network that the target has no such form of.
    """
    if to not in TARGETS:
        raise unknown("target of weights convert", to, TARGETS)
    backbone, coverage = load_backbone(path, **how)
    naming = _target_naming(backbone, to)
    state = {
        naming.from_timm(name): (naming.inverse(name, tensor) if naming.inverse else tensor).contiguous()
        for name, tensor in backbone.net.state_dict().items()
    }
    untranslated = [name for name in state if to == "torchvision" and name.startswith("blocks.")]
    if untranslated:
        raise UsageError(f"{backbone.arch!r} with these options has no form in {to}: no name for {untranslated[0]!r}")
    write_bytes(Path(out), _packed(state, to, Path(out)))
    return coverage


def _target_naming(backbone: Backbone, to: str) -> Naming:
    """The names that `to` has for this network."""
    naming = _known_naming(backbone, to)
    if naming is None:
        possible = ", ".join(other for other in TARGETS if _known_naming(backbone, other) is not None)
        raise UsageError(f"{backbone.arch!r} has no form in {to}; possible for it: {possible}")
    return naming


def _known_naming(backbone: Backbone, to: str) -> Naming | None:
    """As `_target_naming`; None where there is no form of this network."""
    arch, names = backbone.arch, backbone.net.state_dict()
    resnet = "layer1.0.conv1.weight" in names and not any(".se." in name for name in names)
    plain_resnet, deep_resnet = resnet and "conv1.weight" in names, resnet and "conv1.0.weight" in names
    family = next((f for f in ("vit", "swin", "convnext") if arch.startswith(f + "_")), "")
    known = {
        ("torchvision", "vit"): "ViT (torchvision)",
        ("mmpretrain", "vit"): "ViT (MMPretrain)",
        ("mmpretrain", "swin"): "Swin (MMPretrain)",
        ("mmpretrain", "convnext"): "ConvNeXt (MMPretrain)",
    }
    if to == "timm" or (plain_resnet and to in ("torchvision", "mmpretrain")):
        return Naming("timm", ())
    if plain_resnet and to == "detectron2":
        return NAMINGS["ResNet (detectron2)"]
    if deep_resnet and to == "mmpretrain":
        return NAMINGS["ResNet (torchvision, timm)"]
    return NAMINGS[known[to, family]] if (to, family) in known else None


def _packed(state: Mapping[str, Tensor], to: str, out: Path) -> bytes:
    """The bytes of a file of that project."""
    if to == "detectron2":
        arrays = {name: t.numpy() for name, t in state.items() if not name.endswith("num_batches_tracked")}
        return pickle.dumps({"model": arrays, "__author__": "ssl-suite", "matching_heuristics": True})
    if out.suffix == ".safetensors":
        prefix = "backbone." if to == "mmpretrain" else ""
        return save({prefix + name: t for name, t in state.items()}, metadata={"format": "pt"})
    buffer = io.BytesIO()
    if to == "mmpretrain":
        torch.save({"meta": {}, "state_dict": {f"backbone.{name}": t for name, t in state.items()}}, buffer)
    else:
        torch.save(dict(state), buffer)
    return buffer.getvalue()
