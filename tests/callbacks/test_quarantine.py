"""Samples that can't be trained on are set aside and redrawn, alike however they are fetched."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset, WeightedRandomSampler

from benchmarks._kills import Kill, differing, outcome, until_done
from medkit.callbacks.fingerprint import SettingsChangedError
from medkit.callbacks.quarantine import Quarantine, QuarantineError
from medkit.callbacks.spike_guard import SpikeGuard
from medkit.data.ehr import EHRDataModule
from medkit.data.keyed_loader import KeyedLoader
from medkit.data.loader import keyed
from medkit.data.quarantine import ScreenedFetch
from medkit.data.table_loader import TableLoader
from medkit.record.ledger import Ledger
from medkit.record.pseudonym import pseudonym
from tests.callbacks.small import training
from tests.callbacks.test_resume_points import Stop, StoppedError

pytestmark = pytest.mark.usefixtures("_as_before_a_run")

ROWS, SIZE = 48, 6
BAD = {4: "file", 9: "nan", 21: "far"}  # row -> what is wrong with it
RANGES: dict[str | int, tuple[Any, Any]] = {0: (-20.0, 20.0)}


class Scans(Dataset[tuple[Tensor, Tensor]]):
    """Noisy images; some can't be read, are NaN, or hold 9,000 where 20 is the most."""

    def __init__(self, rows: int = ROWS, bad: dict[int, str] | None = None) -> None:
        self.rows = rows
        self.bad = BAD if bad is None else bad

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        kind = self.bad.get(row)
        if kind == "file":
            raise OSError(f"/data/jane_doe_{row}.nii is truncated")
        noise = torch.randn(1, 4, 4) + np.random.rand() + random.random()  # noqa: NPY002
        image = torch.full((1, 4, 4), row / 50) + 0.1 * noise
        image[0, 1, 2] = {"nan": torch.nan, "far": 9000.0}.get(kind or "", image[0, 1, 2])
        return image, torch.tensor(row % 2)


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
        self.seen: list[str] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.seen.append(hashlib.sha256(batch[0].numpy().tobytes()).hexdigest()[:12])
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.net(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def plain(workers: int = 0, **options: Any) -> DataLoader[Any]:
    data = options.pop("data", None) or Scans()
    if "sampler" not in options:
        options["shuffle"] = True
    return DataLoader(data, SIZE, num_workers=workers, **options)


@pytest.fixture
def fit(quiet: dict[str, Any]) -> Callable[..., tuple[Quarantine, Net]]:
    def run(
        loader: Any = None, *, epochs: int = 2, more: tuple[pl.Callback, ...] = (), **options: Any
    ) -> tuple[Quarantine, Net]:
        quarantine = Quarantine(**{"ranges": RANGES, "budget": 0.1} | options)
        torch.manual_seed(0)
        net = Net()
        trainer = pl.Trainer(
            **quiet,
            max_epochs=epochs,
            enable_checkpointing=False,
            use_distributed_sampler=False,
            callbacks=[quarantine, *more],
        )
        data = plain() if loader is None else loader
        trainer.fit(net, data if not isinstance(data, DataLoader) else keyed(data, seed=5))
        return quarantine, net

    return run


def test_bad_samples_are_set_aside_once_each_with_their_reason(fit: Any) -> None:
    quarantine, net = fit()
    assert quarantine.rows == {
        4: "unreadable: OSError in __getitem__",
        9: "non-finite: 0: 1 values",
        21: "out of range: 0: 9000 above 20",
    }
    assert sorted(row for line in quarantine.events for row in line["rows"]) == [4, 9, 21]
    assert len(net.seen) == 2 * ROWS // SIZE  # no batch was lost


def test_batches_are_the_same_for_0_1_2_4_workers(fit: Any) -> None:
    found = [fit(plain(workers)) for workers in (0, 1, 2, 4)]
    assert {tuple(net.seen) for _, net in found} == {tuple(found[0][1].seen)}
    assert all(quarantine.events == found[0][0].events for quarantine, _ in found)


def test_so_they_are_with_persistent_workers_and_weighted_draws(fit: Any) -> None:
    def weighted(workers: int) -> DataLoader[Any]:
        weights = [5.0 if row in BAD else 1.0 for row in range(ROWS)]
        sampler = WeightedRandomSampler(weights, ROWS)
        return plain(workers, sampler=sampler, persistent_workers=workers > 0)

    (one, net), (other, again) = fit(weighted(0), epochs=3), fit(weighted(2), epochs=3)
    assert net.seen == again.seen
    assert one.events == other.events
    assert one.rows.keys() == BAD.keys()


def test_other_batches_than_those_with_a_bad_row_stay_as_they_were(fit: Any) -> None:
    _, clean = fit(plain(data=Scans(bad={})), epochs=1)
    quarantine, mended = fit(epochs=1)
    changed = {n for n, (a, b) in enumerate(zip(clean.seen, mended.seen, strict=True)) if a != b}
    assert changed == {line["batch"] for line in quarantine.events}


def test_stand_ins_come_from_the_rows_of_the_sampler_alone(fit: Any) -> None:
    rows = [row for row in range(ROWS) if row % 2]
    part = Subset(Scans(), rows)
    loader = keyed(plain(data=part), seed=5)
    quarantine, _ = fit(loader, epochs=1, budget=0.2)
    assert {rows[int(row)] for row in quarantine.rows} == {9, 21}
    used = [row for batch in range(len(loader)) for row in loader.rows(0, batch)]
    assert not {4, 10} & set(used)  # numbers in the part: of rows 9 and 21
    only = torch.utils.data.SubsetRandomSampler(rows)
    loader = keyed(plain(sampler=only), seed=5)
    fit(loader, epochs=1)
    used = [row for batch in range(len(loader)) for row in loader.rows(0, batch)]
    assert set(used) <= set(rows) - BAD.keys()


def test_the_rows_of_a_mended_batch_are_those_trained_on(fit: Any) -> None:
    loader = keyed(plain(), seed=5)
    quarantine, _ = fit(loader, epochs=1)
    batch = quarantine.events[0]["batch"]
    image, target = loader.batch_at(0, batch)
    rows = loader.rows(0, batch)
    assert not BAD.keys() & set(rows)
    assert target.tolist() == [row % 2 for row in rows]
    assert bool(image.isfinite().all())


class Tried(Scans):
    """Remembers which rows were asked for."""

    asked: list[int]

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        vars(self).setdefault("asked", []).append(int(row))
        return super().__getitem__(row)


def test_a_row_is_tried_in_one_epoch_and_then_remembered(fit: Any) -> None:
    data = Tried()
    fit(plain(data=data), epochs=4)
    assert [data.asked.count(row) for row in BAD] == [1, 1, 1]


def lines(run_dir: Path) -> list[dict[str, Any]]:
    found = Ledger(run_dir / "ledger.jsonl").read()
    return [{k: v for k, v in line.items() if k != "time"} for line in found]


def test_a_killed_run_ends_in_the_same_bits_and_the_same_ledger(tmp_path: Path) -> None:
    class Data(pl.LightningDataModule):
        def train_dataloader(self) -> Any:
            return plain(1)

    def train(run_dir: Path, kill: Kill | None) -> None:
        training(
            Net, Data, quarantine=Quarantine(RANGES, budget=0.1), epochs=2, limit_val_batches=0
        )(run_dir, kill)

    until_done(train, tmp_path / "whole", [])
    kills = [Kill("batch_start", 4), Kill("batch_end", 10)]
    assert until_done(train, tmp_path / "killed", kills)
    assert differing(outcome(tmp_path / "whole"), outcome(tmp_path / "killed")) == []
    assert lines(tmp_path / "whole") == lines(tmp_path / "killed")
    named = {row for line in lines(tmp_path / "whole") for row in line["rows"]}
    assert named == {pseudonym(row) for row in BAD}
    assert "jane_doe" not in (tmp_path / "whole" / "ledger.jsonl").read_text()


def test_the_log_names_a_row_as_the_ledger_does(fit: Any, caplog: pytest.LogCaptureFixture) -> None:
    fit(epochs=1, name_row=pseudonym)
    assert f"rows {pseudonym(9)}: row set aside, redrawn (0: 1 values)" in caplog.text


def test_over_budget_it_stops_with_rows_and_reasons(fit: Any) -> None:
    with pytest.raises(QuarantineError, match=r"2 of 48 rows .* unreadable, such as 4 \(unread"):
        fit(budget=0.02)
    with pytest.raises(QuarantineError, match="1 of 48 rows"):
        fit(budget=0.0)


def test_a_reader_that_fails_always_is_said_and_not_searched_for_ever(fit: Any) -> None:
    broken = dict.fromkeys(range(ROWS), "file")
    with pytest.raises(QuarantineError, match=r"no sound row was drawn|rows had to be set aside"):
        fit(plain(1, data=Scans(bad=broken)), budget=0.9)


def test_what_the_machine_lacks_is_no_fault_of_a_sample(fit: Any) -> None:
    class Full(Scans):
        def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
            raise OSError(24, "Too many open files")

    with pytest.raises(OSError, match="Too many open files"):
        fit(plain(data=Full()))


def test_validation_rows_are_named_and_not_replaced(quiet: dict[str, Any]) -> None:
    trainer = pl.Trainer(
        **quiet | {"num_sanity_val_steps": 2},
        max_epochs=1,
        enable_checkpointing=False,
        callbacks=[Quarantine(budget=0.1)],
    )
    val = keyed(DataLoader(Scans(bad={7: "nan"}), SIZE), seed=5)
    with pytest.raises(QuarantineError, match=r"validation and test must be sound.* holds 7 \(non"):
        trainer.fit(Net(), keyed(plain(data=Scans(bad={})), seed=5), val)


def test_data_that_are_not_keyed_are_refused(quiet: dict[str, Any]) -> None:
    trainer = pl.Trainer(
        **quiet, max_epochs=1, enable_checkpointing=False, callbacks=[Quarantine()]
    )
    with pytest.raises(ValueError, match=r"needs keyed training data.*found a DataLoader\. Wrap"):
        trainer.fit(Net(), plain())


def test_a_budget_that_is_no_share_is_refused() -> None:
    with pytest.raises(ValueError, match=r"budget must be a share .* got 1\.5\. 0\.02 lets"):
        Quarantine(budget=1.5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budget": "x"}, r"must be a share .* got 'x'\. 0\.02 lets"),
        ({"ranges": [1, 2]}, r"ranges must map fields .* got \[1, 2\]\. Name"),
        ({"ranges": {0: (3, 1)}}, r"must go from low to high, got \(3, 1\)\. Exchange"),
        ({"ranges": {0: ([0, 3], [1, 1])}}, r"must go from low to high"),
        ({"checks": "finite"}, r"checks must be a sequence, got 'finite'\. Put .*\('finite',\)"),
        ({"fields": 0}, r"fields must be a sequence, got 0\. Put .*fields="),
        ({"fields": "image"}, r"fields must be a sequence, got 'image'"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        Quarantine(**options)


def test_a_resume_with_other_ranges_is_refused(tmp_path: Path) -> None:
    class Data(pl.LightningDataModule):
        def train_dataloader(self) -> Any:
            return plain()

    def train(high: float) -> None:
        quarantine = Quarantine({0: (None, high)}, budget=0.1)
        training(
            Net,
            Data,
            quarantine=quarantine,
            epochs=1,
            limit_val_batches=0,
            callbacks=lambda: [Stop(4)],
        )(tmp_path, None)

    with pytest.raises(StoppedError):
        train(20.0)
    with pytest.raises(SettingsChangedError, match="quarantine"):
        train(30.0)


def test_a_spike_guard_keeps_one_set_with_it(fit: Any) -> None:
    guard = SpikeGuard(seed=5)
    data = Tried(bad={4: "file", 9: "nan"})
    quarantine, _ = fit(plain(data=data), more=(guard,), epochs=3, checks=(), ranges={})
    assert guard.policy.set_aside is quarantine.rows
    assert quarantine.rows.keys() == {4, 9}
    assert quarantine.rows[9].startswith("non-finite")
    assert guard.policy.replaced == 0  # from the next epoch on the loader draws another row
    assert data.asked.count(9) <= 2


def test_with_a_guard_a_killed_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    class Data(pl.LightningDataModule):
        def train_dataloader(self) -> Any:
            return plain(data=Scans(bad={4: "file", 9: "nan"}))

    def train(run_dir: Path, kill: Kill | None) -> None:
        training(
            Net,
            Data,
            quarantine=Quarantine(budget=0.1, checks=()),
            spike_guard=True,
            epochs=3,
            limit_val_batches=0,
        )(run_dir, kill)

    until_done(train, tmp_path / "whole", [])
    actions = {line["action"]: line["rows"] for line in lines(tmp_path / "whole")}
    assert actions["rows set aside"] == [pseudonym(9)]
    assert actions["row set aside, redrawn"] == [pseudonym(4)]
    kills = [Kill("batch_start", 8), Kill("batch_end", 8)]
    assert until_done(train, tmp_path / "killed", kills)
    assert differing(outcome(tmp_path / "whole"), outcome(tmp_path / "killed")) == []
    assert lines(tmp_path / "whole") == lines(tmp_path / "killed")


class Many(Scans):
    """Fetches a batch at once."""

    def __getitems__(self, rows: list[int]) -> list[tuple[Tensor, Tensor]]:
        return [self[row] for row in rows]


def test_a_dataset_that_fetches_many_at_once_is_looked_at_row_by_row(fit: Any) -> None:
    (one, net), (_, again) = fit(plain(data=Many())), fit(plain(2, data=Many()))
    assert one.rows.keys() == BAD.keys()
    assert net.seen == again.seen


def rows_in_memory() -> TableLoader:
    made = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, 16, generator=made)
    x[9, 3], x[21, 1] = torch.nan, 9000.0
    return TableLoader((x, torch.arange(ROWS) % 2), SIZE, shuffle=True, seed=5)


def test_rows_in_memory_are_looked_at_once_and_never_drawn(fit: Any) -> None:
    loader = rows_in_memory()
    quarantine, _ = fit(loader)
    assert quarantine.rows.keys() == {9, 21}
    assert [line["epoch"] for line in quarantine.events] == [None, None]
    for epoch in range(2):
        rows = [row for batch in range(len(loader)) for row in loader.rows(epoch, batch)]
        assert len(rows) == ROWS
        assert not {9, 21} & set(rows)


def test_the_other_rows_in_memory_keep_their_positions(fit: Any) -> None:
    before, loader = rows_in_memory(), rows_in_memory()
    fit(loader)
    for batch in range(len(loader)):
        for was, now in zip(before.rows(1, batch), loader.rows(1, batch), strict=True):
            assert was == now or was in {9, 21}


def test_a_tables_ranges_are_those_of_its_columns_before_they_are_scaled(
    tmp_path: Path, quiet: dict[str, Any]
) -> None:
    lines = ["patient_id,age,y"] + [f"p{n},{999 if n == 30 else 40 + n},{n % 2}" for n in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    data = keyed(EHRDataModule(tmp_path / "t.csv", target="y", batch_size=8), seed=5, split_seed=0)
    data.setup("fit")
    assert 30 in data.split.train
    quarantine = Quarantine({"age": (0, 120)}, budget=0.1)

    class Table(Net):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(1, 2)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            assert 30 not in batch.row.tolist()
            return F.cross_entropy(self.net(batch.x), batch.y)

    trainer = pl.Trainer(**quiet, max_epochs=1, enable_checkpointing=False, callbacks=[quarantine])
    trainer.fit(Table(), data)
    assert quarantine.rows == {30: "out of range: age: 999 above 120"}


def test_a_loader_without_a_quarantine_fetches_as_ever() -> None:
    loader = keyed(plain(data=Scans(bad={})), seed=5)
    assert isinstance(loader, KeyedLoader)
    assert not isinstance(loader._fetch, ScreenedFetch)
