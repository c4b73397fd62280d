# SPDX-License-Identifier: Apache-2.0
"""Which control runs stand beside a job."""

from __future__ import annotations

import pytest

from suite.backbone import is_transformer
from suite.run import control, prepare


@pytest.mark.parametrize(
    ("arch", "expected"),
    [("resnet50", False), ("convnext_tiny", False), ("vit_small_patch16_224", True), ("swin_base_patch4_window7_224", True),
     ("beit_base_patch16_224", True), ("deit_tiny_patch16_224", True)],
)  # fmt: skip
def test_transformers_are_told_by_timms_name(arch, expected):
    assert is_transformer(arch) == expected


def test_random_stands_beside_every_job_and_supervised_where_it_learns(cache):
    for algo, names in (("simclr", {"random", "supervised"}), ("mae", {"random"}), ("simmim", {"random"})):
        job = prepare(algo, "digits", (), None, "", {})
        found = {name: extra for name in ("random", "supervised") if (extra := control(job, name)) is not None}
        assert set(found) == names
        assert all(extra.config.arch_options == job.config.arch_options for extra in found.values())
