"""What workers do for a keyed loader, and who takes which share of an epoch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    Sampler,
    Subset,
    get_worker_info,
)

from medkit.data.loader import KeyedLoader, keyed

ROWS, BATCH = 12, 4


class Noisy(Dataset[Tensor]):
    """Its rows and a draw for each."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> Tensor:
        return torch.tensor([float(row), float(np.random.rand())])  # noqa: NPY002


class Whole(Noisy):
    """Fetches a whole batch at once."""

    def __getitems__(self, rows: list[int]) -> list[Tensor]:
        return [self[row] for row in rows]


def epoch(loader: DataLoader[Any], number: int = 0) -> Tensor:
    mine = keyed(loader, seed=3)
    mine.set_epoch(number)
    return torch.cat(list(mine))


def test_a_sample_does_not_depend_on_the_batch_size() -> None:
    small, large = (epoch(DataLoader(Noisy(), size)) for size in (2, 6))
    torch.testing.assert_close(small, large, rtol=0, atol=0)


def test_nor_in_a_subset_which_fetches_for_another_row_by_row() -> None:
    rows = list(range(ROWS))
    small, large = (epoch(DataLoader(Subset(Noisy(), rows), size)) for size in (2, 6))
    torch.testing.assert_close(small, large, rtol=0, atol=0)
    torch.testing.assert_close(small, epoch(DataLoader(Noisy(), 3)), rtol=0, atol=0)


def test_a_dataset_that_fetches_whole_batches_is_asked_for_them() -> None:
    asked = []

    class Asked(Whole):
        def __getitems__(self, rows: list[int]) -> list[Tensor]:
            asked.append(list(rows))
            return super().__getitems__(rows)

    first = epoch(DataLoader(Asked(), BATCH))
    assert asked[-1] == [8, 9, 10, 11]
    torch.testing.assert_close(epoch(DataLoader(Whole(), BATCH)), first, rtol=0, atol=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_generator_made_at_the_first_fetch_is_keyed_from_that_fetch_on(workers: int) -> None:
    class Late(Noisy):
        rng: np.random.Generator | None = None

        def __getitem__(self, row: int) -> Tensor:
            if self.rng is None:
                self.rng = np.random.default_rng()
            return torch.tensor([float(row), float(self.rng.random())])

    loader = keyed(DataLoader(Late(), BATCH, num_workers=workers), seed=3)
    whole = list(loader)
    torch.testing.assert_close(loader.batch_at(0, 2), whole[2], rtol=0, atol=0)
    torch.testing.assert_close(next(iter(loader)), whole[0], rtol=0, atol=0)


class Asks(Noisy):
    """Asks its worker for what belongs to it."""

    shift = 0.0

    def __getitem__(self, row: int) -> Tensor:
        info = get_worker_info()
        return torch.tensor([float(row), info.dataset.shift if info else -1.0])


def shift_by_worker(number: int) -> None:
    get_worker_info().dataset.shift = 5.0  # type: ignore[union-attr]


def test_a_worker_finds_its_own_dataset_in_its_info() -> None:
    loader = DataLoader(Asks(), BATCH, num_workers=1, worker_init_fn=shift_by_worker)
    assert set(epoch(loader)[:, 1].tolist()) == {5.0}


def test_a_sampler_is_told_the_epoch() -> None:
    class Told(Sampler[int]):
        number = 0

        def set_epoch(self, number: int) -> None:
            self.number = number

        def __len__(self) -> int:
            return ROWS

        def __iter__(self) -> Any:
            return iter([(row + self.number) % ROWS for row in range(ROWS)])

    loader = DataLoader(Noisy(), BATCH, sampler=Told())
    assert [epoch(loader, number)[0, 0].item() for number in (0, 3)] == [0.0, 3.0]


def of_rank(rank: int, world: int, loader: DataLoader[Any]) -> KeyedLoader:
    mine: KeyedLoader = keyed(loader, seed=3)
    trainer: Any = SimpleNamespace(global_rank=rank, world_size=world, training=False)
    mine.bind(trainer)
    return mine


def test_two_processes_share_the_batches_of_the_one_global_order() -> None:
    loader = DataLoader(Noisy(), 3, shuffle=True)
    whole = list(keyed(loader, seed=3))
    shares = [of_rank(rank, 2, loader) for rank in range(2)]
    assert [len(share) for share in shares] == [2, 2]
    for rank, share in enumerate(shares):
        for mine, its in zip(share, whole[rank::2], strict=True):
            torch.testing.assert_close(mine, its, rtol=0, atol=0)


def test_the_last_round_is_filled_up_from_the_front() -> None:
    loader = DataLoader(Noisy(), BATCH, shuffle=True)  # three batches
    whole = list(keyed(loader, seed=3))
    second = list(of_rank(1, 2, loader))
    torch.testing.assert_close(second[1], whole[0], rtol=0, atol=0)


def test_a_distributed_sampler_takes_its_own_share_and_another_order_each_epoch() -> None:
    def rows(rank: int, number: int) -> list[float]:
        sampler = DistributedSampler(Noisy(), num_replicas=2, rank=rank, seed=1)
        share = of_rank(rank, 2, DataLoader(Noisy(), 3, sampler=sampler))
        share.set_epoch(number)
        return torch.cat(list(share))[:, 0].tolist()

    assert sorted(rows(0, 0) + rows(1, 0)) == list(range(ROWS))
    assert rows(0, 0) != rows(0, 1)
