# SPDX-License-Identifier: Apache-2.0
"""The table of losses says what the tests declare, and the comparison behind it can fail."""

from __future__ import annotations

import pytest
import torch

from suite import plugins
from tests.equations import COLUMNS, NONE, PAGE, TOLERANCE, Claim, Ledger, Seen, both, claims, page, relative

CLAIM = Claim("mine", "eq. 1", "some package")


def rows():
    """Cells of the committed table."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]


def test_every_recipe_that_trains_has_a_row():
    trained = {name for name, recipe in plugins.load_all("recipes").items() if recipe.method is not None}
    assert {claim.recipe for claim in claims()} == trained == {row[0] for row in rows()[2:]}


def test_the_committed_table_says_what_the_tests_declare():
    header, _, *body = rows()
    assert header == COLUMNS
    assert [(row[0], row[1], row[5]) for row in body] == [(c.recipe, c.equation, c.package or NONE) for c in claims()]


def test_every_cell_was_measured_and_is_within_the_tolerance():
    for recipe, _, inputs, value, gradient, package, theirs in rows()[2:]:
        assert int(inputs) >= 2, recipe
        for number in (value, gradient, *([] if package == NONE else [theirs])):
            assert 0 <= float(number) <= TOLERANCE, recipe


def square(x, scale, factor=1.0):
    """A loss of size 10 for inputs of any scale."""
    return factor * ((x / scale) ** 2).sum()


def leaves(scale):
    return both(torch.linspace(1, 2, 5) * scale)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_wrong_values_and_gradients_are_seen_at_any_scale(scale):
    ledger, (x32, x64) = Ledger(), leaves(scale)
    ledger.agree(CLAIM, square(x32, scale), square(x64, scale), [x32], [x64])
    found = ledger.seen[CLAIM]
    assert found.inputs == 1 and found.value <= 1e-6 and found.gradient <= 1e-6
    with pytest.raises(AssertionError, match="value"):
        ledger.agree(CLAIM, square(x32, scale, 1 + 3e-5), square(x64, scale))
    x32, x64 = leaves(scale)
    tilted = square(x32, scale) + 1e-3 * (x32 - x32.detach()).sum() / scale  # the same value, another gradient
    with pytest.raises(AssertionError, match="gradient"):
        ledger.agree(CLAIM, tilted, square(x64, scale), [x32], [x64])


def test_nan_and_a_loss_where_none_should_be_are_differences():
    zero = torch.zeros((), dtype=torch.float64)
    assert relative(torch.tensor(1e-8), zero) == 0 and relative(torch.tensor(1e-6), zero) == float("inf")
    with pytest.raises(AssertionError):
        Ledger().agree(CLAIM, torch.tensor(float("nan")), zero + 1)
    with pytest.raises(AssertionError, match="float32"):
        Ledger().agree(CLAIM, torch.tensor(1.0), torch.tensor(1.0))


def test_a_package_must_be_declared_and_agree():
    with pytest.raises(AssertionError, match="no package"):
        Ledger().independent(Claim("mine", "eq. 1"), torch.tensor(1.0), 1.0)
    with pytest.raises(AssertionError, match="some package"):
        Ledger().independent(CLAIM, torch.tensor(1.0), 1.1)


def test_what_is_declared_but_not_compared_makes_no_table():
    seen = {claim: Seen(3, 1e-7, 0.0, 2e-8 if claim.package else None) for claim in claims()}
    assert f"| 3 | 1e-07 | 0 | {NONE} |" in page(seen)
    for missing in ("value", "gradient", "package"):
        claim = next(claim for claim in claims() if claim.package)
        broken = {**seen, claim: Seen(**{**vars(seen[claim]), missing: None})}
        with pytest.raises(LookupError, match=claim.recipe):
            page(broken)
