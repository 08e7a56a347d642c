"""Tensors are compared and digested by their bits, whatever their layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medkit.callbacks.bits import same_bits
from medkit.trainer import weights_digest

EYE = torch.eye(4)


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(1.5),
        torch.zeros(0, 3),
        torch.tensor(3).expand(1),
        torch.tensor([3]).expand(4, 1),
        torch.arange(6).reshape(2, 3).T,
        torch.tensor([True, False]),
        torch.tensor([1 + 2j]).conj(),
        torch.tensor([float("nan")]),
        EYE.to(torch.bfloat16),
        EYE.to_sparse(),
        EYE.to_sparse_csr(),
        EYE.to_sparse_csc(),
        EYE.to_sparse_bsr((2, 2)),
        EYE.to_sparse_bsc((2, 2)),
    ],
)
def test_a_copy_is_the_same(value: Tensor) -> None:
    assert same_bits(value, value.clone())
    assert weights_digest({"w": value}) == weights_digest({"w": value.clone()})


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.tensor(0.0), torch.tensor(-0.0)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
        (torch.zeros(2), torch.zeros(2, 1)),
        (EYE.to_sparse(), (2 * EYE).to_sparse()),
        (EYE.to_sparse_csr(), EYE.roll(1, 0).to_sparse_csr()),
        (EYE, EYE.to_sparse()),
    ],
)
def test_what_differs_is_told_apart(a: Tensor, b: Tensor) -> None:
    assert not same_bits(a, b)
