"""What a sample must be: what is found, and how it is said."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from medkit.data.screen import Screen, padding


class Sample(NamedTuple):
    x: Tensor
    y: Tensor


def said(sample: Any, **options: Any) -> tuple[str, str] | None:
    found = Screen(**options).problem(sample)
    return None if found is None else tuple(found)


@pytest.mark.parametrize(
    ("sample", "where"),
    [
        (torch.tensor([1.0, torch.nan]), "the sample"),
        ((torch.zeros(2), torch.tensor([torch.inf])), "1"),
        ({"image": np.array([0.0, -np.inf]), "name": "a"}, "image"),
        (Sample(torch.zeros(2), torch.tensor(torch.nan)), "y"),
        ([{"age": float("nan")}], "0.age"),
    ],
)
def test_values_that_are_not_finite_are_found_wherever_they_are(sample: Any, where: str) -> None:
    assert said(sample) == ("non-finite", f"{where}: 1 values")


@pytest.mark.parametrize(
    "sample", [torch.tensor([1, 2]), (torch.zeros(3), "text"), {"x": np.array(["a"]), "y": None}]
)
def test_what_has_no_such_values_is_in_order(sample: Any) -> None:
    assert said(sample) is None


def test_labels_that_may_be_unknown_can_be_left_out() -> None:
    sample = Sample(torch.zeros(2), torch.tensor(torch.nan))
    assert said(sample, fields=("x",)) is None


def test_a_range_is_of_all_values_or_of_each_feature() -> None:
    hu = {"image": torch.tensor([[-1024.0, 3072.0]])}
    assert said(hu, ranges={"image": (-1024, 3072)}) is None
    assert said(hu, ranges={"image": (-1000, None)}) == (
        "out of range",
        "image: -1024 below -1000",
    )
    row = Sample(torch.tensor([[50.0, 999.0], [700.0, 8.0]]), torch.tensor(0))
    high = np.array([120.0, 10.0])
    assert said(row, ranges={"x": (None, high)}) == (
        "out of range",
        "x[1]: 999 above 10, 1 more",
    )


def test_a_field_that_is_not_there_is_an_error_and_no_bad_sample() -> None:
    with pytest.raises(ValueError, match=r"field 'hu' in each sample, found \['x', 'y'\]\. Name"):
        said(Sample(torch.zeros(2), torch.zeros(1)), ranges={"hu": (0, 1)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checks": ("finite", "blurred")}, r"among .*got \['blurred'\]\. Samples that"),
        ({"ranges": {"x": 5}}, r"must be \(low, high\), got 5\. None stands"),
    ],
)
def test_checks_and_ranges_that_are_none_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Screen(**options)


def test_an_image_of_one_value_is_found_and_an_empty_mask_is_none() -> None:
    sample = {"mask": torch.zeros(1, 4, 4), "image": torch.randn(1, 4, 4)}
    assert said(sample, checks=("constant",)) is None
    sample["image"] = torch.full((1, 4, 4), -1000)
    assert said(sample, checks=("constant",)) == ("constant", "all -1000")


def padded(planes: int) -> Tensor:
    image = torch.rand(1, 8, 16, 16)
    image[:, :, :, :planes] = -1024.0
    return image


def test_planes_of_one_value_at_the_edges_are_padding() -> None:
    assert padding(padded(0)) == 0
    assert padding(padded(8)) == 0.5
    both = padded(4)
    both[:, :4] = -1024.0
    assert padding(both) == 1 - 0.5 * 0.75
    inside = torch.rand(1, 8, 8)
    inside[:, 3:5] = 0.0
    assert padding(inside) == 0


def test_a_quarter_of_padding_is_too_much_and_less_is_not() -> None:
    assert said(padded(3), checks=("padded",)) is None
    assert said(padded(4), checks=("padded",)) == ("padded", "25% padding")


def test_a_check_of_ones_own_says_what_is_wrong() -> None:
    def too_small(sample: Tensor) -> str:
        return "" if len(sample) > 3 else f"{len(sample)} values"

    assert said(torch.zeros(5), checks=(too_small,)) is None
    assert said(torch.zeros(2), checks=(too_small,)) == ("too_small", "2 values")


def test_rows_of_a_table_are_looked_at_together_as_they_are_one_by_one() -> None:
    made = torch.Generator().manual_seed(0)
    rows = Sample(torch.randn(40, 3, generator=made), torch.zeros(40))
    rows.x[5, 1], rows.x[8, 2], rows.y[3] = torch.nan, torch.inf, torch.nan
    screen = Screen({"x": ([-2.0, -9.0, -9.0], 2.5)})
    one_by_one = [
        screen.problem(Sample(x, y)) is not None for x, y in zip(rows.x, rows.y, strict=True)
    ]
    assert screen.bad_rows(rows).tolist() == one_by_one
    assert 3 < sum(one_by_one) < 10


def test_a_table_is_no_image() -> None:
    with pytest.raises(ValueError, match=r"rows of a table are no images.* Leave 'constant'"):
        Screen(checks=("constant",)).bad_rows((torch.zeros(3, 2),))
