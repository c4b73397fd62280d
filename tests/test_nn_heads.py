# SPDX-License-Identifier: Apache-2.0
"""Projection heads: which layers, in which order, with which biases."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from suite.nn.heads import mlp


def shape(head):
    """Layers in short: widths and bias of a linear one, A(ffine) or P(lain) batch norm, ReLU."""
    short = []
    for layer in head:
        if isinstance(layer, nn.Linear):
            short.append(f"{layer.in_features}-{layer.out_features}{'+b' if layer.bias is not None else ''}")
        elif isinstance(layer, nn.BatchNorm1d):
            short.append("A" if layer.affine else "P")
        else:
            short.append(type(layer).__name__)
    return " ".join(short)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "5-4 A ReLU 4-3+b"),
        ({"norm": False, "bias": True}, "5-4+b ReLU 4-3+b"),  # MoCo v2
        ({"last_norm": "affine", "last_bias": False}, "5-4 A ReLU 4-3 A"),  # SimCLR
        ({"last_norm": "plain", "last_bias": False}, "5-4 A ReLU 4-3 P"),  # SimSiam's projector
        ({"bias": True, "last_bias": False}, "5-4+b A ReLU 4-3"),  # BYOL
    ],
)
def test_two_layers(options, expected):
    assert shape(mlp((5, 4, 3), **options)) == expected


def test_one_and_three_layers():
    assert shape(mlp((5, 3))) == "5-3+b"
    assert shape(mlp((5, 4, 4, 3), last_bias=False)) == "5-4 A ReLU 4-4 A ReLU 4-3"


def test_output_is_that_of_the_layers_by_hand():
    torch.manual_seed(0)
    head, x = mlp((5, 4, 3), last_norm="plain"), torch.randn(16, 5)
    hidden = x @ head[0].weight.T
    hidden = ((hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + 1e-5).sqrt()).clamp_min(0)
    out = hidden @ head[3].weight.T + head[3].bias
    expected = (out - out.mean(0)) / (out.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(head(x), expected, rtol=1e-4, atol=1e-5)
