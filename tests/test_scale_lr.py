# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from suite.errors import UsageError
from suite.run import prepare


def job(*assignments, scale_lr=True):
    return prepare("mae", "tiny", assignments, None, "", {}, scale_lr=scale_lr)


def test_the_rate_follows_the_batch_and_counts_as_another_experiment(cache):
    usual, wide = job(scale_lr=False), job("batch=128", "optim.min_lr=0.0005")
    assert wide.config.optim.lr == pytest.approx(4 * usual.config.optim.lr) and usual.config.batch == 32
    assert wide.config.optim.min_lr == pytest.approx(4 * 0.0005)
    assert job("batch=128", scale_lr=False).config.optim.lr == usual.config.optim.lr
    assert job().digest == usual.digest != wide.digest


@pytest.mark.parametrize("text", ["optim.lr=0.1", 'optim={"lr": 0.1}'])
def test_two_rates_are_refused(cache, text):
    with pytest.raises(UsageError, match="give one of them"):
        job("batch=128", text)
