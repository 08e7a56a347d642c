"""Weights spread over devices (FSDP2), where Lightning's ``ModelParallelStrategy`` asks for it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

__all__ = ["shard", "whole"]


def shard(model: nn.Module, mesh: Any) -> None:
    """Spread a model's weights over processes, each block of layers gathered while it is used.

    Args:
        model: Of Hugging Face's, with adapters or without; changed in place, once.
        mesh: Lightning's ``device_mesh``.

    Raises:
        ValueError: Where single layers are to be cut too (tensor parallelism).
    """
    if isinstance(model, FSDPModule):
        return
    if mesh["tensor_parallel"].size() > 1:
        raise ValueError(
            "weights are spread over processes that each have data of their own; this mesh has "
            f"{mesh['tensor_parallel'].size()} for the same data. Pass "
            "strategy=ModelParallelStrategy(data_parallel_size=<devices>, tensor_parallel_size=1)."
        )
    several = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    for block in [block for part in several for block in part]:
        fully_shard(block, mesh=mesh["data_parallel"])
    fully_shard(model, mesh=mesh["data_parallel"])


def whole(value: Tensor) -> Tensor:
    """Return a weight as one tensor; all processes must ask together where it is spread."""
    found: Tensor = value.full_tensor() if isinstance(value, DTensor) else value
    return found
