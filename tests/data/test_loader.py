"""Keyed loaders: batches are functions of their place."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    WeightedRandomSampler,
)

from medkit import keyed as keys
from medkit.data.loader import KeyedLoader, keyed

ROWS, BATCH = 24, 5


class Films(Dataset[Any]):
    """Draws from all three global generators, and convolves: bits depend on the thread count."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        noise = torch.randn(1, 4, 48, 48) * random.uniform(0.5, 1.5)
        kernel = torch.from_numpy(np.random.standard_normal((4, 4, 5, 5)).astype(np.float32))  # noqa: NPY002
        image = functional.conv2d(noise + row, kernel)
        return functional.interpolate(image, scale_factor=0.37, mode="bilinear")[0], row


class Private(Sampler[int]):
    """A sampler with a generator of its own, as people write it."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng()

    def __iter__(self) -> Iterator[int]:
        return iter(self.rng.permutation(ROWS).tolist())

    def __len__(self) -> int:
        return ROWS


def digests(loader: KeyedLoader, epoch: int = 0) -> list[str]:
    loader.set_epoch(epoch)
    return [
        hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).hexdigest()[:12]
        for x, y in loader
    ]


def stir() -> None:
    """Leave the global generators somewhere else."""
    random.random(), np.random.rand(3), torch.rand(5)  # noqa: NPY002


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("draw", ["shuffled", "weighted"])
def test_batches_are_the_same_for_0_1_2_4_workers_at_1_and_2_threads(draw: str) -> None:
    found = set()
    for count in (1, 2):
        for workers in (0, 1, 2, 4):
            torch.set_num_threads(count)
            sampler = None
            if draw == "weighted":
                sampler = WeightedRandomSampler([1.0 + row % 3 for row in range(ROWS)], ROWS)
            plain = DataLoader(
                Films(), BATCH, shuffle=sampler is None, sampler=sampler, num_workers=workers
            )
            stir()
            found.add(tuple(digests(keyed(plain, seed=3), epoch=1)))
    assert len(found) == 1


def test_other_seeds_and_epochs_give_other_batches() -> None:
    plain = DataLoader(Films(), BATCH, shuffle=True)
    zero, one = digests(keyed(plain, seed=0)), digests(keyed(plain, seed=1))
    later = digests(keyed(plain, seed=0), epoch=1)
    assert len({*zero, *one, *later}) == 3 * len(zero)


def test_an_epoch_visits_every_row_once() -> None:
    loader = keyed(DataLoader(Films(), BATCH, shuffle=True), seed=0)
    rows = [row for batch in range(len(loader)) for row in loader.rows(2, batch)]
    assert sorted(rows) == list(range(ROWS))


def test_a_batch_can_be_had_again_from_its_place_alone() -> None:
    loader = keyed(DataLoader(Films(), BATCH, shuffle=True), seed=0)
    loader.set_epoch(4)
    batches = list(loader)
    stir()
    again, rows = loader.batch_at(4, 2)
    assert torch.equal(again, batches[2][0])
    assert rows.tolist() == loader.rows(4, 2)


def test_a_row_drawn_twice_is_augmented_twice() -> None:
    always = WeightedRandomSampler([1.0] + [0.0] * (ROWS - 1), 4)
    x, y = next(iter(keyed(DataLoader(Films(), 4, sampler=always), seed=0)))
    assert y.tolist() == [0, 0, 0, 0]
    assert len({row.numpy().tobytes() for row in x}) == 4


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(Films(), BATCH, sampler=Private()),
        lambda: DataLoader(Films(), batch_sampler=BatchSampler(Private(), 4, drop_last=True)),
        lambda: DataLoader(Films(), batch_size=None, sampler=Private()),
        lambda: DataLoader(Films(), BATCH, shuffle=True, generator=torch.Generator()),
        lambda: DataLoader(Films(), BATCH, shuffle=True, num_workers=2, persistent_workers=True),
    ],
    ids=["sampler", "batch sampler", "no batching", "generator", "persistent workers"],
)
def test_draws_of_other_peoples_loaders_do_not_depend_on_history(make: Any) -> None:
    def epochs(loader: KeyedLoader, *numbers: int) -> list[list[bytes]]:
        found = []
        for number in numbers:
            loader.set_epoch(number)
            found.append([torch.as_tensor(x).numpy().tobytes() for x, _ in loader])
        return found

    stir()
    first, second = epochs(keyed(make(), seed=0), 0, 1)
    stir()
    (second_alone,) = epochs(keyed(make(), seed=0), 1)
    assert second == second_alone
    assert first != second


def crop(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """A collate_fn that draws."""
    left = random.randrange(4)
    x = torch.stack([image[..., left : left + 8] for image, _ in samples])
    return x, torch.tensor([row for _, row in samples])


def test_a_collate_function_that_draws_is_keyed() -> None:
    plain = DataLoader(Films(), BATCH, shuffle=True, collate_fn=crop)
    first = digests(keyed(plain, seed=0))
    stir()
    assert digests(keyed(plain, seed=0)) == first


def test_fetching_leaves_the_global_generators_as_they_were() -> None:
    loader = keyed(DataLoader(Films(), BATCH, shuffle=True), seed=0)
    before = keys.get_globals()
    list(loader)
    loader.batch_at(0, 0)
    after = keys.get_globals()
    assert before[0] == after[0]
    assert np.array_equal(before[1][1], after[1][1])
    assert torch.equal(before[2], after[2])


def test_weighted_draws_still_follow_their_weights() -> None:
    weights = [3.0 if row < 6 else 1.0 for row in range(ROWS)]  # a half of the draws by weight
    sampler = WeightedRandomSampler(weights, 4000)
    loader = keyed(DataLoader(Films(), 100, sampler=sampler), seed=0)
    rows = [row for batch in range(len(loader)) for row in loader.rows(0, batch)]
    share = np.mean([row < 6 for row in rows])
    assert abs(share - 0.5) < 4 * np.sqrt(0.25 / 4000)


class Data(pl.LightningDataModule):
    """Splits by a global draw in setup, as people do."""

    def setup(self, stage: str | None = None) -> None:
        self.train_rows = np.random.permutation(ROWS)[:16].tolist()  # noqa: NPY002

    def train_dataloader(self) -> list[DataLoader[Any]]:
        part = torch.utils.data.Subset(Films(), self.train_rows)
        return [DataLoader(part, 4, shuffle=True), DataLoader(part, 4, shuffle=True)]

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Films(), 8)


def test_a_datamodule_comes_back_itself_with_keyed_hooks_and_split() -> None:
    data = Data()
    assert keyed(data, seed=0) is data
    stir()
    data.setup("fit")
    rows = data.train_rows
    stir()
    data.setup("fit")
    assert data.train_rows == rows
    assert isinstance(data.val_dataloader(), KeyedLoader)


def test_a_split_depends_on_the_split_seed_and_not_on_the_seed() -> None:
    def rows(seed: int, split_seed: int) -> list[int]:
        data = keyed(Data(), seed=seed, split_seed=split_seed)
        data.setup("fit")
        return list(data.train_rows)

    assert rows(1, 5) == rows(2, 5)
    assert rows(1, 5) != rows(1, 6)


def test_two_training_loaders_of_one_run_draw_apart() -> None:
    data = keyed(Data(), seed=0)
    data.setup("fit")
    one, two = data.train_dataloader()
    assert one.rows(0, 0) + one.rows(0, 1) != two.rows(0, 0) + two.rows(0, 1)


def test_keying_a_datamodule_again_takes_the_new_seed() -> None:
    data = keyed(keyed(Data(), seed=0), seed=1)
    data.setup("fit")
    assert data.val_dataloader().seed == 1


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(4))


def test_an_iterable_dataset_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"Stream is an IterableDataset: its samples have no pos"):
        keyed(DataLoader(Stream()), seed=0)


def test_monais_thread_loader_is_refused_with_the_reason() -> None:
    from monai.data import ThreadDataLoader

    with pytest.raises(ValueError, match="threads that share their generators"):
        keyed(ThreadDataLoader(Films(), batch_size=2), seed=0)


def test_anything_else_is_refused() -> None:
    with pytest.raises(TypeError, match=r"got list\. Pass the object whose batches"):
        keyed([1, 2], seed=0)
