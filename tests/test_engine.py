# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from suite import engine

CPU = torch.device("cpu")


X86 = "x86_64"


@pytest.mark.parametrize(
    ("avx", "amx", "machine", "native"),
    [(False, False, X86, False), (True, False, X86, True), (False, True, X86, True), (False, False, "aarch64", True)],
)
def test_emulated_bf16_gives_way_to_float32(avx, amx, machine, native, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert engine.supported("bf16", CPU) == ("bf16" if native else "32")
    assert engine.supported("16", CPU) == engine.supported("32", CPU) == "32"


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file() or platform.machine() != X86, reason="reads Linux's list of x86 flags")
def test_native_bf16_is_what_the_processor_lists():
    flags = Path("/proc/cpuinfo").read_text().split()
    assert engine.cpu_has_bf16() == ("avx512_bf16" in flags or "amx_bf16" in flags)


def test_no_mkldnn_no_bf16(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert engine.supported("bf16", CPU) == "32"
