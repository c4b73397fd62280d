# SPDX-License-Identifier: Apache-2.0
"""Shared by all tests: one thread pool that fits the machine, generated data in one cache, small sets of images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.equations import Ledger, page

os.environ.setdefault("MPLBACKEND", "agg")


def pytest_addoption(parser):
    parser.addoption("--losses", metavar="FILE", help="write the table of losses and their equations there")


@pytest.fixture(scope="session")
def ledger(request):
    """Compares losses with their equations and, if asked, writes what it saw."""
    found = Ledger()
    yield found
    if path := request.config.getoption("--losses"):
        Path(path).write_text(page(found.seen))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Generated data sets live in one folder per session unless the caller names one."""
    if "SUITE_CACHE" not in os.environ:
        os.environ["SUITE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    return os.environ["SUITE_CACHE"]


@pytest.fixture(scope="session")
def digits():
    """A few hundred embedded pictures with labels."""
    from suite.data import load

    images = load("digits", "train")
    return images.subset(np.arange(512))


@pytest.fixture
def few(digits):
    """48 of them."""
    return digits.subset(np.arange(48), "train")


@pytest.fixture
def backbone():
    """A small ResNet."""
    from tests.probe_samples import convolutional

    return convolutional()


@pytest.fixture
def vit():
    """A small transformer."""
    from tests.probe_samples import transformer

    return transformer()
