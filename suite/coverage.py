# SPDX-License-Identifier: Apache-2.0
"""Search a checkpoint for backbones and compare each with the network that it should be."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from suite.archs import Guess, infer_arch
from suite.backbone import Backbone
from suite.errors import UsageError
from suite.keymaps import NAMINGS, Naming, Source, prefixes, source_of

HEADS = {"fc", "head", "classifier"}
# Parts that change the output of a network that has them, so that one without them is another network.
OPTIONAL_PARTS = {"reg_token", "register_tokens", "dist_token", "norm_pre", "pre_norm", "fc_norm"}
# Buffers that a network computes itself, and batch counters, which change no output.
DERIVED = ("num_batches_tracked", "relative_position_index", "attn_mask")


@dataclass(frozen=True)
class Coverage:
    """What became of the tensors of a weights file.

    Attributes:
        source: the file.
        kind: project and naming that matched.
        arch: timm's name of the network; with `options` and `stem`, what it was built from.
        prefix: what stood before the backbone's names.
        matched: number of backbone tensors found, of `total` (batch counters not counted).
        missing: names that the network has and the file has not.
        mismatched: name, with both shapes.
        extra: names in the file that belong to this network's parts, and that it does not have.
        unused: names of the file that are no part of a backbone: heads, other networks, queues.
        notes: what the file does not say and was assumed; other backbones that would fit as well.
    """

    source: str
    kind: str
    arch: str
    prefix: str
    matched: int
    total: int
    missing: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    stem: str = "imagenet"

    @property
    def complete(self) -> bool:
        """All tensors of the network are in the file and fit, and no block of the file is left over."""
        return not (self.missing or self.mismatched or self.extra)

    def report(self) -> list[str]:
        """Plain-text lines."""
        options = f" {json.dumps(dict(self.options))}" if self.options else ""
        lines = [
            f"weights     {self.source}",
            f"layout      {self.kind}, prefix {self.prefix!r}",
            f"network     {self.arch}{options}, {self.stem} stem",
            f"backbone    {self.matched} of {self.total} tensors",
        ]
        for name in ("missing", "mismatched", "extra"):
            if found := getattr(self, name):
                lines.append(f"{name:<12}{len(found)}: {', '.join(found[:5])}{', …' if len(found) > 5 else ''}")
        if self.unused:
            lines.append(f"unused      {len(self.unused)}: {_grouped(self.unused)}")
        return lines + [f"note        {note}" for note in self.notes]


@dataclass(frozen=True)
class Found:
    """A place in a file that looks like a backbone.

    Attributes:
        prefix: what stands before its names.
        source: the line of `keymaps.SOURCES` that knows the prefix, if any.
        rank: of that line; lower is preferred.
        naming: of its tensors.
        state: its tensors by timm's names.
        keys: the file's names by timm's names.
        guess: what the shapes say.
    """

    prefix: str
    source: Source | None
    rank: int
    naming: Naming
    state: Mapping[str, Tensor]
    keys: Mapping[str, str]
    guess: Guess | None

    @property
    def kind(self) -> str:
        """Project and naming, for people."""
        return f"{self.source.family if self.source else 'unlisted prefix'}: {self.naming.name}"


@dataclass(frozen=True)
class Wanted:
    """The network asked for, as far as it was; what is None comes from the shapes."""

    arch: str | None = None
    options: Mapping[str, Any] | None = None
    stem: str | None = None
    built: dict[str, Backbone] = field(default_factory=dict)

    def network(self, guess: Guess | None) -> Backbone | None:
        """The network to compare with, built once; None when neither asked for nor guessed."""
        if self.arch is not None and (guess is None or guess[0] != self.arch.split(".")[0]):
            guess = (self.arch, {}, "imagenet")
        if guess is None:
            return None
        arch, stem = self.arch or guess[0], self.stem or guess[2]
        options = guess[1] if self.options is None else self.options
        key = json.dumps([arch, dict(options), stem], sort_keys=True, default=list)
        if key not in self.built:
            try:
                self.built[key] = Backbone(arch, options, stem)
            except (
                RuntimeError,
                ValueError,
                AssertionError,
            ) as error:  # what timm raises on options that do not go together
                raise UsageError(f"cannot build {arch!r} with options {dict(options)}: {_first_line(error)}") from None
        return self.built[key]


def search(state: Mapping[str, Tensor], wanted: Wanted) -> Iterator[Found]:
    """Every place of `state` that looks like a backbone, in every naming that it may be in."""
    namings = list(NAMINGS.values())
    if wanted.arch is not None and (network := wanted.network(None)) is not None:
        weights = [name for name in network.net.state_dict() if name.endswith("weight")]
        namings.append(Naming("timm", tuple(sorted(weights, key=lambda name: -name.count("."))[:3])))
    for naming in namings:
        for prefix in prefixes(state, naming.anchors):
            keys = {naming.to_timm(key[len(prefix) :]): key for key in state if key.startswith(prefix)}
            part = {name: naming.value(name, state[key]) if naming.value else state[key] for name, key in keys.items()}
            rank, source = source_of(prefix)
            yield Found(prefix, source, rank, naming, part, keys, _with_heads(infer_arch(part), part, source))


def _with_heads(guess: Guess | None, part: Mapping[str, Tensor], source: Source | None) -> Guess | None:
    """A project's own number of attention heads, which no shape shows."""
    if guess is None or source is None or "cls_token" not in part:
        return guess
    heads = source.heads.get(part["cls_token"].shape[-1])
    return (guess[0], guess[1] | {"num_heads": heads}, guess[2]) if heads else guess


def compare(found: Found, path: str, state: Mapping[str, Tensor], wanted: Wanted) -> Coverage | None:
    """Compare a place with the network asked for or guessed; None when there is neither."""
    network = wanted.network(found.guess)
    if network is None:
        return None
    target = network.net.state_dict()
    counted = [name for name in target if not name.endswith("num_batches_tracked")]
    missing = tuple(name for name in counted if name not in found.state)
    mismatched = tuple(
        f"{name} ({_shape(found.state[name])} instead of {_shape(target[name])})"
        for name in counted
        if name in found.state and found.state[name].shape != target[name].shape
    )
    parts = ({name.split(".")[0] for name in target} | OPTIONAL_PARTS) - HEADS
    extra = tuple(
        name for name in found.state if name not in target and name.split(".")[0] in parts and not name.endswith(DERIVED)
    )
    used = {found.keys[name] for name in target if name in found.keys}
    return Coverage(
        source=path,
        kind=found.kind,
        arch=network.arch,
        prefix=found.prefix,
        matched=len(counted) - len(missing) - len(mismatched),
        total=len(counted),
        missing=missing,
        mismatched=mismatched,
        extra=extra,
        unused=tuple(key for key in state if key not in used and not key.endswith(DERIVED)),
        options=network.options,
        stem=network.stem,
    )


def under(fits: Sequence[tuple[Found, Coverage]], prefix: str) -> list[tuple[Found, Coverage]]:
    """Those under a prefix as a user writes it: the last dot and the container's path may be left out."""
    wanted = prefix if not prefix or prefix.endswith(".") else prefix + "."
    exact = [fit for fit in fits if fit[0].prefix == wanted]
    return exact or [fit for fit in fits if wanted and fit[0].prefix.endswith("." + wanted)]


def notes(found: Found, network: Backbone, others: Iterable[str]) -> tuple[str, ...]:
    """What the file does not say and was assumed, and which other prefixes would have fitted."""
    lines = []
    if network.is_vit:
        heads = getattr(network.net.blocks[0].attn, "num_heads", None)  # type: ignore[index,union-attr]
        lines.append(f"attention heads are not in the file: {heads} assumed; else pass num_heads as an option")
    if network.stem == "cifar":
        lines.append("3×3 first convolution: stride 1, padding 1 and no max-pooling assumed")
    if "detectron2" in found.naming.name:
        lines.append(
            "channel order is not in the file: RGB with stride in the 3×3 assumed; "
            "detectron2's MSRA models are BGR with stride in the 1×1"
        )
    if names := [repr(p) for p in dict.fromkeys(others) if p != found.prefix]:
        lines.append(f"fits as well: {', '.join(names)} (choose with --prefix)")
    return tuple(lines)


def refusal(
    path: str,
    wanted: Wanted,
    prefix: str | None,
    chosen: Sequence[Coverage],
    everything: Sequence[Coverage],
    guess: str | None,
) -> UsageError:
    """One line that says why nothing was loaded and what to do."""
    whole = [c for c in chosen if c.complete]
    if whole:
        several = ", ".join(repr(c.prefix) for c in whole)
        return UsageError(f"{path!r} holds several backbones: {several}; choose one with --prefix")
    closest = max(everything, key=lambda c: (c.complete, c.matched), default=None)
    if closest is None:
        return UsageError(f"{path!r} holds no tensors named like those of {wanted.arch!r}")
    nearest = f"closest prefix: {closest.prefix!r} ({closest.matched} of {closest.total} tensors)"
    if prefix is not None and closest.prefix not in [c.prefix for c in chosen]:
        nearest += f"; pass --prefix {closest.prefix}" if closest.complete else ""
    best = max(chosen, key=lambda c: c.matched, default=None)
    if best is None:
        return UsageError(f"{path!r} has no backbone under prefix {prefix!r}; {nearest}")
    wrong = [
        f"{len(names)} {what} (first: {names[0]})"
        for names, what in (
            (best.missing, "missing"),
            (best.mismatched, "of another shape"),
            (best.extra, "left over"),
        )
        if names
    ]
    looks = f"; its shapes look like {guess}" if guess and guess != best.arch.split(".")[0] else ""
    problem = f"of {best.total} backbone tensors {', '.join(wrong)}"
    return UsageError(f"{path!r} does not fit {best.arch}: {problem}{looks}; {nearest}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"


def _grouped(names: Iterable[str]) -> str:
    """Names by their first parts, most numerous first: `module.fc.* (4), module.queue`."""
    groups = Counter(".".join(name.split(".")[:2]) + (".*" if name.count(".") > 1 else "") for name in names)
    shown = [f"{name} ({n})" if n > 1 else name for name, n in groups.most_common(8)]
    return ", ".join(shown) + (", …" if len(groups) > 8 else "")
