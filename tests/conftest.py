# SPDX-License-Identifier: Apache-2.0
"""Shared by all tests: one thread pool that fits the machine, generated data in one cache, small sets of images."""

from __future__ import annotations

import os

import numpy as np
import pytest

os.environ.setdefault("MPLBACKEND", "agg")


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
