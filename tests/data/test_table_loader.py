"""The table loader: the batches of a keyed DataLoader, without its price."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medkit import keyed as keys
from medkit.data import table_loader
from medkit.data.batches import Batch, TableDataset
from medkit.data.draws import BalancedDraws
from medkit.data.ehr import EHRDataModule
from medkit.data.loader import KeyedLoader, keyed
from medkit.data.table_loader import TableLoader
from medkit.synth.ehr import MISSING_CODES
from tests.callbacks.small import after_kills, training

ROWS = 100


def table(rows: int = ROWS, columns: int = 16) -> Batch:
    made = torch.Generator().manual_seed(0)
    x = torch.randn(rows, columns, generator=made)
    return Batch(x, (torch.arange(rows) % 10 == 0).long(), torch.arange(rows), torch.arange(rows))


def reference(rows: Any, size: int, *, drop_last: bool = False, **options: Any) -> KeyedLoader:
    """A keyed DataLoader over the same rows."""
    if not options:
        options = {"shuffle": True}
    return KeyedLoader(
        DataLoader(
            TableDataset(rows), size, collate_fn=lambda b: b, drop_last=drop_last, **options
        ),
        seed=3,
    )


def same(some: Any, others: Any) -> bool:
    return len(some) == len(others) and all(
        type(a) is type(b) and all(map(torch.equal, a, b))
        for a, b in zip(some, others, strict=True)
    )


def passes(loader: KeyedLoader, epoch: int = 0) -> list[Any]:
    loader.set_epoch(epoch)
    return list(loader)


@pytest.mark.parametrize("size", [16, 7, 1, 100, 250])
@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_are_those_of_a_keyed_dataloader(size: int, drop_last: bool) -> None:
    mine = TableLoader(table(), size, shuffle=True, drop_last=drop_last, seed=3)
    theirs = reference(table(), size, drop_last=drop_last)
    assert len(mine) == len(theirs)
    for epoch in (0, 1, 5):
        assert same(passes(mine, epoch), passes(theirs, epoch))
        assert mine.places(epoch)[-1:] == [] or mine.rows(epoch, 0) == theirs.rows(epoch, 0)


@pytest.mark.parametrize("chunk", [1, 2_000, 1 << 30])
def test_batches_do_not_depend_on_how_many_are_gathered_at_once(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = passes(TableLoader(table(), 16, shuffle=True, seed=3))
    monkeypatch.setattr(table_loader, "_CHUNK_BYTES", chunk)
    assert same(passes(TableLoader(table(), 16, shuffle=True, seed=3)), whole)


@pytest.mark.parametrize(("size", "columns"), [(16, 16), (7, 5), (16, 3), (3, 16)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_batch_begins_where_torchs_own_tensors_do(
    size: int, columns: int, shuffle: bool
) -> None:
    """Else what is computed from it could differ in the last bit with the place of entry."""
    loader = TableLoader(table(columns=columns), size, shuffle=shuffle, seed=0)
    assert {part.data_ptr() % 64 for batch in loader for part in batch} == {0}


def test_in_order_each_row_comes_in_its_place() -> None:
    batches = passes(TableLoader(table(), 16))
    assert torch.equal(torch.cat([batch.x for batch in batches]), table().x)
    assert [len(batch.y) for batch in batches] == [16] * 6 + [4]


def test_a_batch_changed_in_place_leaves_the_rows_as_they_are() -> None:
    for shuffle in (True, False):
        rows = table()
        for batch in TableLoader(rows, 16, shuffle=shuffle, seed=0):
            batch.x.zero_()
        assert same([rows], [table()])


def test_a_part_of_the_rows_is_gone_through_as_if_it_had_been_cut_out() -> None:
    part = torch.arange(0, ROWS, 3)
    cut = Batch(*(field[part] for field in table()))
    for shuffle in (True, False):
        mine = TableLoader(table(), 8, rows=part.numpy(), shuffle=shuffle, seed=3)
        alone = TableLoader(cut, 8, shuffle=shuffle, seed=3)
        assert same(passes(mine, 1), passes(alone, 1))
        assert len(mine.dataset) == len(part)


class Pair(NamedTuple):
    image: Tensor
    label: Tensor


@pytest.mark.parametrize("make", [Pair, lambda *fields: fields])
def test_batches_are_of_the_type_of_the_fields(make: Any) -> None:
    fields = make(torch.zeros(6, 2, 2), torch.arange(6))
    batch = next(iter(TableLoader(fields, 4, shuffle=True, seed=0)))
    assert type(batch) is type(fields)
    assert [tuple(part.shape) for part in batch] == [(4, 2, 2), (4,)]


def test_a_batch_can_be_had_again_from_its_place_alone() -> None:
    loader = TableLoader(table(), 16, shuffle=True, seed=0)
    batches = passes(loader, 4)
    assert same([loader.batch_at(4, 5)], [batches[5]])
    assert loader.rows(4, 5) == batches[5].row.tolist()


def bound(loader: TableLoader, **options: Any) -> TableLoader:
    trainer: Any = SimpleNamespace(**({"training": False} | options))
    loader.bind(trainer)
    return loader


@pytest.mark.parametrize("world", [2, 3, 5])
@pytest.mark.parametrize("rows", [ROWS, 30])
def test_processes_share_the_batches_of_the_one_global_order(world: int, rows: int) -> None:
    whole = passes(TableLoader(table(rows), 16, shuffle=True, seed=3))
    filled = [*whole, *whole][: -(-len(whole) // world) * world]
    for rank in range(world):
        share = bound(
            TableLoader(table(rows), 16, shuffle=True, seed=3), global_rank=rank, world_size=world
        )
        assert same(list(share), filled[rank::world])


def test_an_epoch_can_be_entered_at_any_batch() -> None:
    whole = passes(TableLoader(table(), 16, shuffle=True, seed=3), 2)
    for batch in range(len(whole)):
        loop = SimpleNamespace(
            epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=2)),
            epoch_loop=SimpleNamespace(
                batch_progress=SimpleNamespace(current=SimpleNamespace(ready=batch))
            ),
            _combined_loader=None,
        )
        late = bound(
            TableLoader(table(), 16, shuffle=True, seed=3),
            training=True,
            fit_loop=loop,
            global_rank=0,
            world_size=1,
        )
        assert same(list(late), whole[batch:])


class Counts(pl.LightningModule):
    """Keeps which rows it saw, epoch by epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(16, 2)
        self.seen: list[list[int]] = []

    def on_train_epoch_start(self) -> None:
        self.seen.append([])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen[-1] += batch.row.tolist()
        return nn.functional.cross_entropy(self.net(batch.x), batch.y)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("val/loss", nn.functional.cross_entropy(self.net(batch.x), batch.y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def test_under_a_plain_trainer_each_epoch_has_its_own_order(quiet: dict[str, Any]) -> None:
    loader = TableLoader(table(), 16, shuffle=True, seed=3)
    module = Counts()
    pl.Trainer(**quiet, max_epochs=3, enable_checkpointing=False).fit(module, loader)
    expected = [
        [row for batch in range(len(loader)) for row in loader.rows(epoch, batch)]
        for epoch in range(3)
    ]
    assert module.seen == expected


def test_without_a_key_each_pass_is_drawn_from_torchs_global_generator() -> None:
    loader = TableLoader(table(), 16, shuffle=True)
    torch.manual_seed(0)
    first, second = list(loader), list(loader)
    torch.manual_seed(0)
    again = list(TableLoader(table(), 16, shuffle=True))
    assert same(first, again)
    assert not same(first, second)


def test_a_keyed_pass_leaves_the_global_generators_as_they_were() -> None:
    before = keys.get_globals()
    passes(TableLoader(table(), 16, shuffle=True, seed=0))
    passes(TableLoader(table(), 16, balanced_by=table().y, seed=0))
    passes(TableLoader(table(), 16))
    after = keys.get_globals()
    assert before[0] == after[0]
    assert np.array_equal(before[1][1], after[1][1])
    assert torch.equal(before[2], after[2])


class Tables(pl.LightningDataModule):
    """Two training loaders and one for validation, without a seed."""

    def train_dataloader(self) -> list[TableLoader]:
        return [TableLoader(table(), 16, shuffle=True) for _ in range(2)]

    def val_dataloader(self) -> TableLoader:
        return TableLoader(table(), 64)


def test_a_keyed_datamodule_hands_its_key_to_the_loaders() -> None:
    data = keyed(Tables(), seed=3)
    one, two = data.train_dataloader()
    assert same(list(one), list(TableLoader(table(), 16, shuffle=True, seed=3)))
    assert not same(list(one), list(two))
    assert data.val_dataloader().tag == ("val", 0)


def test_keyed_gives_a_loader_its_seed_and_leaves_one_it_has() -> None:
    assert keyed(TableLoader(table(), 16, shuffle=True), seed=3).seed == 3
    assert keyed(TableLoader(table(), 16, shuffle=True, seed=4), seed=3).seed == 4


class OneTable(Tables):
    def train_dataloader(self) -> TableLoader:  # type: ignore[override]
        return TableLoader(table(48), 8, shuffle=True)


class Balanced(Tables):
    def train_dataloader(self) -> TableLoader:  # type: ignore[override]
        return TableLoader(table(48), 8, balanced_by=table(48).y)


@pytest.mark.parametrize("data", [OneTable, Balanced])
def test_a_kill_leaves_no_trace(data: type[Tables], tmp_path: Path) -> None:
    assert after_kills(training(Counts, data), tmp_path) == {}


ENCOUNTERS = Path(__file__).parents[2] / "data_samples" / "ehr" / "encounters.csv"


@pytest.mark.parametrize("draws", ["shuffled", "balanced"])
def test_encounters_come_as_from_a_keyed_dataloader_of_their_training_rows(draws: str) -> None:
    settings: dict[str, Any] = {"target": "died", "site": "site", "missing_codes": MISSING_CODES}
    data = EHRDataModule(ENCOUNTERS, **settings, draws=draws, baseline_c=None)
    data.setup()
    rows = data.rows("train")
    options = {"sampler": BalancedDraws(rows.y)} if draws == "balanced" else {}
    loader = keyed(data, seed=3).train_dataloader()
    assert isinstance(loader, TableLoader)
    assert same(passes(loader, 2), passes(reference(rows, 64, **options), 2))


# class-balanced draws


def test_balanced_draws_show_each_class_equally_often_and_each_member_too() -> None:
    y = torch.tensor([0] * 900 + [1] * 90 + [2] * 10).repeat(20)
    loader = TableLoader((y, torch.arange(len(y))), 1000, balanced_by=y, seed=0)
    assert len(loader) == 20
    drawn = torch.cat([batch[0] for epoch in range(10) for batch in passes(loader, epoch)])
    share = torch.bincount(drawn) / len(drawn)
    assert torch.allclose(share, torch.full((3,), 1 / 3), atol=4 * (2 / 9 / len(drawn)) ** 0.5)
    rows = torch.cat([batch[1] for epoch in range(10) for batch in passes(loader, epoch)])
    times = torch.bincount(rows, minlength=len(y))[y == 2].double()  # 200 members, 333 times each
    chi2 = float(((times - times.mean()) ** 2 / times.mean()).sum())
    assert 199 - 5 * (2 * 199) ** 0.5 < chi2 < 199 + 5 * (2 * 199) ** 0.5


def test_many_classes_are_drawn_equally_often_as_well() -> None:
    y = torch.arange(3000).sqrt().long()  # 55 classes of 1 to 109 members
    rows = BalancedDraws(y).keyed_order(np.random.default_rng(0))
    times = torch.bincount(y[torch.from_numpy(rows)], minlength=55).double()
    chi2 = float(((times - times.mean()) ** 2 / times.mean()).sum())
    assert 54 - 5 * 108**0.5 < chi2 < 54 + 5 * 108**0.5


def test_balanced_draws_are_a_function_of_seed_and_epoch() -> None:
    def rows(seed: int, epoch: int) -> list[int]:
        loader = TableLoader(table(), 16, balanced_by=table().y, seed=seed)
        passes(loader, 7)
        return torch.cat([batch.row for batch in passes(loader, epoch)]).tolist()

    torch.manual_seed(0)
    first = rows(0, 1)
    torch.manual_seed(1)
    assert rows(0, 1) == first
    assert rows(1, 1) != first
    assert rows(0, 2) != first


def test_balanced_draws_are_the_same_in_a_keyed_dataloader() -> None:
    mine = TableLoader(table(), 16, balanced_by=table().y, seed=3)
    theirs = reference(table(), 16, sampler=BalancedDraws(table().y))
    assert same(passes(mine, 2), passes(theirs, 2))


def test_as_a_sampler_alone_balanced_draws_obey_torchs_seed() -> None:
    draws = BalancedDraws(table().y)
    torch.manual_seed(0)
    first, second = list(draws), list(draws)
    torch.manual_seed(0)
    assert list(BalancedDraws(table().y)) == first != second
    assert len(first) == len(draws) == ROWS


@pytest.mark.slow
def test_balanced_draws_are_right_above_2_to_the_24_rows() -> None:
    """There torch's refuses, or with float32 weights never draws the upper half."""
    rows, rare = (1 << 24) + 4096, 4096
    y = torch.zeros(rows, dtype=torch.uint8)
    y[-rare:] = 1  # all members of a class beyond what float32 can count
    order = torch.from_numpy(BalancedDraws(y).keyed_order(keys.generator(0, "order", 0)))
    ones = order[order >= rows - rare] - (rows - rare)
    assert abs(len(ones) / rows - 0.5) < 5 * 0.5 / rows**0.5
    times = torch.bincount(ones, minlength=rare).double()
    chi2 = float(((times - times.mean()) ** 2 / times.mean()).sum())
    assert abs(chi2 - (rare - 1)) < 5 * (2 * (rare - 1)) ** 0.5
    upper = (order[order < rows - rare] >= (rows - rare) // 2).double().mean()
    assert abs(float(upper) - 0.5) < 5 * 0.5 / (rows / 2) ** 0.5


# bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TableLoader((torch.zeros(3), torch.zeros(4)), 2), r"one entry per row, all on on"),
        (lambda: TableLoader((), 2), r"one entry per row, all on one device; found shapes \[\]"),
        (lambda: TableLoader([torch.zeros(3)], 2), r"a tuple of tensors.*found list"),  # type: ignore[arg-type]
        (lambda: TableLoader((np.zeros(3),), 2), r"a tuple of tensors.*\['ndarray'\]"),  # type: ignore[arg-type]
        (lambda: TableLoader((torch.tensor(3),), 2), r"a tuple of tensors.*found tuple of \[\(\)"),
        (lambda: TableLoader(table(), 0), r"batch_size must be a whole number .*got 0\. 64 suits"),
        (
            lambda: TableLoader(table(), 2, shuffle=True, balanced_by=table().y),
            r"shuffled or drawn by class, not both.*leave shuffle out",
        ),
        (
            lambda: TableLoader(table(), 2, rows=[1, 2], balanced_by=table().y),
            r"a class for each row gone through, 2; got 100\. With rows=, pass",
        ),
        (lambda: TableLoader(table(), 2, rows=[1, 100]), r"from 0 to 99; found .* from 1 to 100\."),
        (lambda: TableLoader(table(), 2, rows=[-1]), r"found .* from -1 to -1\. Pass those of a"),
        (lambda: TableLoader(table(), 2, rows=table().y > 0), r"found torch\.bool of shape \(100,"),
        (lambda: BalancedDraws(torch.tensor([0, 1, -1])), r"found torch\.int64.*with 1 below 0"),
        (lambda: BalancedDraws(torch.tensor([0.0, 1.0])), r"a class from 0 on.*torch\.float32"),
        (lambda: BalancedDraws(torch.zeros(2, 2).long()), r"found torch\.int64 of shape \(2, 2\)"),
        (lambda: BalancedDraws(torch.tensor([1, 1])), r"at least two classes; found 1 in 2 rows"),
        (lambda: BalancedDraws(torch.tensor([]).long()), r"at least two classes; found 0 in 0"),
    ],
)
def test_bad_input_is_refused_with_what_to_do(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_no_rows_give_no_batches() -> None:
    assert list(TableLoader(table(0), 4)) == list(TableLoader(table(0), 4, shuffle=True)) == []
