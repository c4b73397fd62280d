# SPDX-License-Identifier: Apache-2.0
"""Data sets: the catalogue, the embedded sets, readers for what the user has, checks and a packed cache.

Nothing here imports torch; batches for training are made in `suite.data.loader`.
"""

from __future__ import annotations

from suite.data.cache import cache_dir
from suite.data.card import Card
from suite.data.catalogue import Dataset, Options, card, catalogue, detect, load, names
from suite.data.imageset import ImageSet
from suite.data.sources import Sources

__all__ = ["Card", "Dataset", "ImageSet", "Options", "Sources", "cache_dir", "card", "catalogue", "detect", "load", "names"]
