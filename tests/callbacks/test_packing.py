"""What people keep in attributes comes back in the type it had, from a file that runs no code."""

from __future__ import annotations

import enum
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from medkit.callbacks.packing import pack, unpack
from medkit.callbacks.state import NotPlainError


class Meta(torch.Tensor):
    """Stands for MONAI's tensors."""


class Phase(enum.Enum):
    WARM = "warm"
    HOT = "hot"


class Level(enum.IntEnum):
    LOW = 1


Pair = namedtuple("Pair", "loss step")


def through_a_file(value: Any, like: Any, tmp_path: Path) -> Any:
    torch.save(pack(value), tmp_path / "packed")
    return unpack(torch.load(tmp_path / "packed", weights_only=True), like)


@pytest.mark.parametrize(
    ("value", "like"),
    [
        (3, None),
        (0.1, None),
        (np.float32(0.1), None),
        (np.float64(0.1), None),
        (np.int16(-3), None),
        (np.bool_(True), None),
        (np.arange(6, dtype="int16").reshape(2, 3), None),
        (np.array([1 + 2j]), None),
        (np.arange(6.0).reshape(2, 3).T, None),
        ([1, (2.0, "x"), {"a": [None]}], []),
        ({1, 2}, None),
        (frozenset({"a"}), None),
        (deque([1.0, 2.0], maxlen=4), deque(maxlen=4)),
        (Counter(a=2), Counter()),
        (OrderedDict(b=1, a=2), OrderedDict()),
        (defaultdict(int, {1: 2, "k": 3}), defaultdict(int)),
        (Path("a/b"), None),
        (Phase.HOT, Phase.WARM),
        (Level.LOW, Level.LOW),
        (Pair(0.5, 3), Pair(0.0, 0)),
        (torch.float16, None),
        (torch.Size([2, 3]), None),
    ],
)
def test_it_comes_back_as_it_was(value: Any, like: Any, tmp_path: Path) -> None:
    back = through_a_file(value, like, tmp_path)
    assert type(back) is type(value)
    if isinstance(value, np.ndarray):
        assert back.dtype == value.dtype
        np.testing.assert_array_equal(back, value)
    else:
        assert back == value


@pytest.mark.parametrize(
    "values",
    [
        [torch.tensor(float("nan")), torch.tensor(-0.0), torch.tensor(1e-45)],
        [torch.arange(6).reshape(2, 3), torch.zeros(2, 3, dtype=torch.int64)],
        [torch.ones(2, dtype=torch.bfloat16)] * 3,
        [torch.ones(2), torch.ones(3)],
        [torch.ones(2), 1.0],
        [torch.ones(2), torch.ones(2, 2).T[0]],
        [torch.eye(2).to_sparse(), torch.eye(2).to_sparse()],
    ],
)
def test_a_list_of_tensors_comes_back_as_separate_tensors(
    values: list[Any], tmp_path: Path
) -> None:
    mine: list[Any] = ["an older state"]
    back = through_a_file(values, mine, tmp_path)
    assert back is mine  # who else holds the list sees it
    for was, now in zip(values, back, strict=True):
        assert type(now) is type(was)
        if isinstance(was, torch.Tensor):
            assert now.dtype == was.dtype
            assert now.shape == was.shape
            raw = [
                v.to_dense().contiguous().numpy(force=True).tobytes()
                for v in (was.float(), now.float())
            ]
            assert raw[0] == raw[1]
    if isinstance(back[-1], torch.Tensor) and back[-1].layout == torch.strided:
        back[0].zero_()
        assert back[1].untyped_storage().data_ptr() != back[0].untyped_storage().data_ptr()


def test_the_losses_of_an_epoch_are_one_tensor_in_the_file() -> None:
    packed = pack([torch.tensor(float(i)) for i in range(1000)], freeze=True)
    assert sum(isinstance(part, torch.Tensor) for part in packed) == 1


def test_a_packed_list_does_not_change_with_its_tensors() -> None:
    losses = [torch.tensor(1.0), torch.tensor(2.0)]
    packed = pack(losses, freeze=True)
    losses[0].zero_()
    assert unpack(packed) == [1.0, 2.0]


def test_a_defaultdict_keeps_its_factory(tmp_path: Path) -> None:
    back = through_a_file(defaultdict(list, a=[1]), defaultdict(list), tmp_path)
    assert back["new"] == []


def test_others_that_hold_the_container_see_what_comes_back(tmp_path: Path) -> None:
    mine: list[int] = []
    assert through_a_file([1, 2], mine, tmp_path) is mine


def test_what_is_frozen_does_not_change_with_the_tensor() -> None:
    tensor = torch.zeros(2)
    packed = pack({"sum": tensor}, freeze=True)
    tensor += 1
    assert packed["sum"].tolist() == [0.0, 0.0]


def test_a_subclass_of_tensor_becomes_one_that_loads_safely(tmp_path: Path) -> None:
    back = through_a_file(torch.arange(3.0).as_subclass(Meta), None, tmp_path)
    assert type(back) is torch.Tensor
    assert back.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    "value", [object(), [object()], nn.Linear(1, 1), nn.Parameter(torch.ones(1)), lambda: 0]
)
def test_what_has_no_plain_form_is_refused(value: Any) -> None:
    with pytest.raises(NotPlainError):
        pack(value)
