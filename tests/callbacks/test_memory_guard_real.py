"""Memory that really runs out: the process's, by a limit on it, and an accelerator's."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks._memory import Net, deviation, fit, lost_and_doubled, mlp
from medkit.callbacks.keyed_steps import KeyedSteps
from medkit.callbacks.memory_guard import MemoryGuard

MIB = 1 << 20
ROWS = 53


class Wide(Net):
    """Beside the loss, activations of so many MiB a sample, four of them kept for backward."""

    def __init__(self, mib: int) -> None:
        super().__init__(mlp(), lr=0.0)
        numbers = mib * MIB // 4
        self.wide = nn.Parameter(torch.randn(1, numbers) / numbers)

    def loss_terms(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        total, weight = super().loss_terms(batch)
        wide = (batch[0][:, :1] @ self.wide).sin().exp().tanh()
        return total + 1e-6 * wide.sum(), weight


def train(folder: Path, mib: int, accelerator: str) -> tuple[Net, MemoryGuard]:
    torch.manual_seed(3)
    module, guard = Wide(mib), MemoryGuard()
    options: dict[str, Any] = {"size": ROWS, "accelerator": accelerator}
    fit(module, folder, callbacks=[KeyedSteps(seed=1), guard], **options)
    return module, guard


def check(split: Net, guard: MemoryGuard, whole: Net) -> None:
    assert guard.samples is not None
    assert guard.samples < ROWS
    assert guard.events[0]["action"].startswith("batch split")
    assert deviation(split, whole) < 1e-6
    assert lost_and_doubled(split, whole) == (0, 0)


@contextmanager
def room_for(more: int) -> Iterator[None]:
    """Let this process have so many bytes more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def runs_out(folder: Path) -> None:
    whole, guard = train(folder, 1, "cpu")
    assert guard.events == []
    gc.collect()
    with room_for(150 * MIB):  # 53 samples want 212 MiB
        split, guard = train(folder, 1, "cpu")
    check(split, guard, whole)
    assert "DefaultCPUAllocator" in guard.events[0]["detail"]


@pytest.mark.skipif(sys.platform != "linux", reason="a process's memory is limited so on Linux")
def test_a_shortage_of_the_process_is_survived(tmp_path: Path) -> None:
    # a fresh one: what earlier tests have mapped and not used yet would be room too
    process = multiprocessing.get_context("spawn").Process(target=runs_out, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0


@pytest.mark.gpu
def test_a_shortage_of_the_accelerator_is_survived(tmp_path: Path) -> None:
    device = torch.accelerator.current_accelerator()
    assert device is not None
    memory = torch.get_device_module(device)
    whole, guard = train(tmp_path, 4, "auto")
    assert guard.events == []
    memory.empty_cache()
    total = memory.get_device_properties(device).total_memory
    room = 600 * MIB  # 53 samples want 848 MiB
    memory.set_per_process_memory_fraction((memory.memory_allocated(device) + room) / total)
    try:
        split, guard = train(tmp_path, 4, "auto")
    finally:
        memory.set_per_process_memory_fraction(1.0)
    check(split, guard, whole)
