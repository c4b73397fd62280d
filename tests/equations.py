# SPDX-License-Identifier: Apache-2.0
"""Losses against their papers' equations: what is compared, how far apart it is, and the table of it all.

`python -m tests.equations` runs every comparison and writes the table to docs/losses.md.
"""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "losses.md"
TOLERANCE = 1e-5
ROUNDING = 1e-7
"""A float32 number of size 1 is not known better: smaller differences count as none."""
NONE = "none is installable"
COLUMNS = ("Recipe", "Equation", "Inputs", "Value", "Gradient", "Independent implementation", "Value")


@dataclass(frozen=True)
class Claim:
    """One loss that a test file compares; every recipe that trains has one at least."""

    recipe: str
    equation: str
    "Which of the paper's equations, in words."
    package: str = ""
    "The independent implementation that it is compared with too; empty: none is installable."


@dataclass
class Seen:
    """The largest relative differences of a claim so far; None before any comparison of that kind."""

    inputs: int = 0
    value: float | None = None
    gradient: float | None = None
    package: float | None = None


class Ledger:
    """Compares, and remembers what it saw."""

    def __init__(self) -> None:
        self.seen: dict[Claim, Seen] = {}

    def agree(
        self,
        claim: Claim,
        ours: Tensor,
        theirs: Tensor,
        our_inputs: Sequence[Tensor] = (),
        their_inputs: Sequence[Tensor] = (),
    ) -> None:
        """Our float32 loss against the equation in float64, and the gradients of both with respect to their inputs.

        Without inputs the values alone are compared. Gradients are left in the inputs' `grad`.
        """
        assert theirs.dtype == torch.float64, f"{claim.recipe}: the equation is computed in {theirs.dtype}"
        seen = self.seen.setdefault(claim, Seen())
        seen.inputs += 1
        seen.value = _larger(seen.value, relative(ours.detach(), theirs.detach()), f"{claim}: value")
        if not our_inputs:
            return
        ours.backward()
        theirs.backward()
        for mine, other in zip(our_inputs, their_inputs, strict=True):
            assert mine.grad is not None and other.grad is not None
            size = float(torch.linalg.vector_norm(other.detach()))
            difference = relative(mine.grad, other.grad, size)
            seen.gradient = _larger(seen.gradient, difference, f"{claim}: gradient")

    def independent(self, claim: Claim, ours: Tensor, theirs: Tensor | float) -> None:
        """Our loss against that of the package which the claim names."""
        assert claim.package, f"{claim}: names no package"
        seen = self.seen.setdefault(claim, Seen())
        difference = relative(ours.detach(), torch.as_tensor(theirs).detach())
        seen.package = _larger(seen.package, difference, f"{claim}: {claim.package}")


def relative(ours: Tensor, theirs: Tensor, size: float = 1.0) -> float:
    """Length of the difference over the length of `theirs`; 0 where `size` times the difference is float32's rounding.

    Args:
        ours: of any shape.
        theirs: of the same shape.
        size: length of the input of a gradient, which makes the limit independent of the input's scale.
    """
    difference = float(torch.linalg.vector_norm(ours.double() - theirs.double()))
    length = float(torch.linalg.vector_norm(theirs.double()))
    if difference * size <= ROUNDING:
        return 0.0
    return difference / length if length else float("inf")


def _larger(before: float | None, now: float, what: str) -> float:
    assert now <= TOLERANCE, f"{what} differs by {now:.1e}"  # also false for nan
    return now if before is None else max(before, now)


def claims() -> list[Claim]:
    """What the test files declare, in order of recipes."""
    names = sorted(path.stem for path in HERE.glob("test_loss*.py"))
    modules = [importlib.import_module(f"tests.{name}") for name in names]
    found = {value for module in modules for value in vars(module).values() if isinstance(value, Claim)}
    return sorted(found, key=lambda claim: (claim.recipe, claim.equation))


def page(seen: dict[Claim, Seen]) -> str:
    """The table as markdown.

    Raises:
        LookupError: something declared was not compared.
    """
    rows = [_row(claim, seen.get(claim, Seen())) for claim in claims()]
    lines = [f"| {' | '.join(cells)} |" for cells in (COLUMNS, ("---",) * len(COLUMNS), *rows)]
    return f"""# Losses against their equations

Every recipe's loss in float32 against the paper's equation, written out in float64 as loops over samples, and where a package
has the same loss, against that. The numbers are the largest relative differences over all inputs that the tests try, random
ones and edge cases: |ours - theirs| / |theirs| of the value, ‖ours - theirs‖ / ‖theirs‖ of the gradient. Tests fail above
{TOLERANCE:g}. Differences below {ROUNDING:g}, float32's rounding of 1, count as 0 (a gradient's times the length of its input).

Written by `python -m tests.equations` with torch {torch.__version__.partition("+")[0]} on the CPU ({platform.machine()}).
The last digits depend on the machine. The comparisons are in `tests/test_loss*.py`.

{chr(10).join(lines)}
"""


def _row(claim: Claim, seen: Seen) -> tuple[str, ...]:
    if seen.value is None or seen.gradient is None or bool(claim.package) != (seen.package is not None):
        raise LookupError(f"{claim} is declared but not compared in value, gradient and package")
    value, gradient = _number(seen.value), _number(seen.gradient)
    package = (claim.package, _number(seen.package)) if seen.package is not None else (NONE, "")
    return claim.recipe, claim.equation, str(seen.inputs), value, gradient, *package


def _number(difference: float) -> str:
    return f"{difference:.0e}" if difference else "0"


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64 that float32 holds exactly."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def units(*shape: int, seed: int = 0) -> Tensor:
    """Random directions in float64 that float32 holds exactly: the last dimension has length 1, to float32's precision."""
    return F.normalize(randn(*shape, seed=seed), dim=-1).float().double()


def both(x: Tensor) -> tuple[Tensor, Tensor]:
    """A float32 and a float64 leaf with the same numbers, those that float32 can hold."""
    rounded = x.detach().float()
    return rounded.clone().requires_grad_(), rounded.double().requires_grad_()


def naive_info_nce(q: Tensor, k: Tensor, negatives: Tensor, tau: float) -> Tensor:
    """MoCo, eq. 1: -log exp(q·k/tau) / sum over the key and all negatives, one query at a time."""
    total = torch.zeros((), dtype=q.dtype)
    for i in range(len(q)):
        terms = [torch.exp(q[i] @ key / tau) for key in (k[i], *negatives)]
        total = total - torch.log(terms[0] / sum(terms))
    return total / len(q)


def lightly_info_nce(q: Tensor, k: Tensor, negatives: Tensor, tau: float) -> Tensor:
    """The same by the lightly package, whose memory bank holds the negatives K×d."""
    from lightly.loss import NTXentLoss

    loss = NTXentLoss(temperature=tau, memory_bank_size=tuple(negatives.shape))
    loss.memory_bank.bank = negatives.T if loss.memory_bank.bank.shape[0] == negatives.shape[1] else negatives
    return loss(q, k)


if __name__ == "__main__":
    files = [str(path) for path in sorted(HERE.glob("test_loss*.py"))]
    sys.exit(pytest.main([*files, "-m", "not slow", "--losses", str(PAGE)]))
