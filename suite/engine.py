# SPDX-License-Identifier: Apache-2.0
"""Fabric for one process, `--devices N`, torchrun and Slurm: the same code sees a device and a world size."""

from __future__ import annotations

import logging
import os
import platform
import resource
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from suite.errors import UsageError

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

PRECISION = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def launched() -> bool:
    """True in a process that torchrun (or `--devices`) or Slurm started as one of several."""
    return int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1 and (
        "LOCAL_RANK" in os.environ or "SLURM_PROCID" in os.environ
    )


def main_process() -> bool:
    """True in the process that writes records."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0


def respawn(devices: int, arguments: Sequence[str]) -> list[str]:
    """The command that runs this same command line in `devices` processes under torchrun.

    Raises:
        UsageError: fewer GPUs than asked for.
    """
    if torch.cuda.is_available() and torch.cuda.device_count() < devices:
        raise UsageError(f"--devices {devices}: this machine has {torch.cuda.device_count()} GPU(s)")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"]
    return [*torchrun, "-m", "suite.cli", *arguments]


def default_device() -> torch.device:
    """The GPU of this process if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def supported(precision: str, device: torch.device) -> str:
    """The precision that this device can really do: bf16 needs hardware, else float32."""
    if precision == "32":
        return "32"
    if device.type == "cpu":
        has = precision == "bf16" and cpu_has_bf16()
    else:
        has = torch.cuda.is_bf16_supported() if precision == "bf16" else True
    return precision if has else "32"


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bf16 itself. Emulated, as on x86 with plain AVX-512, it is slower than float32."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    native = (torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported)
    return platform.machine() not in ("x86_64", "AMD64") or any(has() for has in native)


def make_fabric(precision: str = "32") -> Fabric:
    """A launched Fabric for this process: alone, or one of those that torchrun or Slurm started."""
    from lightning_fabric import Fabric  # takes seconds, which a command that finds everything done need not wait for

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    device = default_device()
    world = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched() else 1
    backend = "nccl" if device.type == "cuda" else "gloo"
    strategy = _ddp(backend) if launched() else "auto"
    fabric = Fabric(
        accelerator=device.type,
        devices=world,
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", os.environ.get("SLURM_NNODES", "1"))) if launched() else 1,
        strategy=strategy,
        precision=PRECISION[supported(precision, device)],  # type: ignore[arg-type]  # the three literals above
    )
    fabric.launch()
    return fabric


def _ddp(backend: str) -> DDPStrategy:
    """DDP that leaves buffers alone: plain batch norm keeps the statistics of its own process, as the papers train."""
    from lightning_fabric.strategies import DDPStrategy

    # torch's replacement for this option copies the buffers once at the start, which would move queues between processes.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.* is deprecated")
    return DDPStrategy(broadcast_buffers=False, process_group_backend=backend)


def make_deterministic(device: torch.device) -> None:
    """Same seed, same numbers, on the CPU; GPUs keep their fast kernels and differ in the last bits."""
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property


def threads() -> int:
    """Threads that torch uses on this machine: the cores this process may run on, unless OMP_NUM_THREADS says less."""
    return torch.get_num_threads()


def leave() -> None:
    """End the group of processes: what follows runs alone in the main process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "TORCHELASTIC_RUN_ID",
                 "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"):  # fmt: skip
        os.environ.pop(name, None)


def peak_memory_mb(device: torch.device) -> float:
    """Largest memory of this process so far: on the GPU what was allocated there, else resident memory, in MB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
