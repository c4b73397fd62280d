# SPDX-License-Identifier: Apache-2.0
"""Learning-rate schedules by iteration, and their honest shortening."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

C = TypeVar("C")


def step_rate(milestones: Sequence[int], gamma: float, warmup: int, warmup_ratio: float) -> Callable[[int], float]:
    """Factor on the learning rate per iteration: linear warm-up from `warmup_ratio`, times gamma at each milestone."""

    def rate(step: int) -> float:
        ramp = 1.0 if step >= warmup else warmup_ratio + (1 - warmup_ratio) * step / warmup
        return ramp * gamma ** sum(step >= milestone for milestone in milestones)

    return rate


def poly_rate(iterations: int, power: float, floor: float) -> Callable[[int], float]:
    """Factor (1 - floor) (1 - step / iterations)^power + floor on the learning rate."""
    return lambda step: (1 - floor) * (1 - step / iterations) ** power + floor


def scaled(cfg: C) -> C:
    """A config whose iterations, milestones and warm-up are `cfg.fraction` of what they were, rounded, each at least 1."""
    given: Any = cfg

    def part(count: int) -> int:
        return max(1, round(count * given.fraction))

    changes: dict[str, Any] = {"iterations": part(given.iterations), "fraction": 1.0}
    if hasattr(given, "milestones"):
        changes |= {"milestones": tuple(part(m) for m in given.milestones)}
    if getattr(given, "warmup", 0):
        changes |= {"warmup": part(given.warmup)}
    return dataclasses.replace(given, **changes)


def describe(cfg: Any, presets: Mapping[str, Any]) -> str:
    """What a shortened schedule is a part of, in one line for the record.

    Args:
        cfg: the config before `scaled`.
        presets: the evaluator's, to say whose schedule it is and whether the batch is that preset's.
    """
    length = f"{scaled(cfg).iterations:,} of {cfg.iterations:,} iterations"
    for name, preset in presets.items():
        same = all(_get(cfg, key) == _get(preset, key) for key in ("architecture", "iterations", "milestones", "warmup"))
        if same:
            kind = "the default" if name == "default" else "the published"
            batch = f", batch {cfg.batch} in place of {preset.batch}" if cfg.batch != preset.batch else ""
            return f"{cfg.fraction:g} of {kind} schedule: {length}{batch}"
    return f"{cfg.fraction:g} of a schedule set by hand: {length}"


def _get(cfg: Any, key: str) -> Any:
    value = getattr(cfg, key, None)
    return tuple(value) if isinstance(value, list) else value
