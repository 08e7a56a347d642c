"""What hooks set on a dataset comes back after a resume; data and caches do not."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from medkit.callbacks.attributes import ChangedAttributes


class Rows(Dataset[Any]):
    def __init__(self) -> None:
        self.strength = 0.1
        self.stages = ["warm up"]
        self.rows = torch.zeros(100, 2)
        self.cache: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return 100

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.rows[row]


class Data(pl.LightningDataModule):
    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.level = 1
        self.rows = Rows()
        self.train = wrap(self.rows)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, batch_size=10)


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(2, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.net(batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SetsAndPutsBack(pl.Callback):
    """Changes the data as a hook would, collects, forgets, and restores."""

    def __init__(self) -> None:
        self.collected: dict[str, Any] = {}
        self.lost: list[str] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        changes = ChangedAttributes(trainer)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        data.level, data.rows.strength = 2, 0.9
        data.rows.stages.append("strong")
        data.rows.rows = torch.ones(100, 2)
        data.rows.cache = {n: torch.zeros(2) for n in range(100)}
        self.collected = changes.collect(trainer)["attributes"]
        data.level, data.rows.strength, data.rows.stages = 1, 0.1, ["warm up"]
        self.lost = changes.restore(trainer, {"attributes": self.collected, "flags": {}})


@pytest.mark.parametrize(
    "wrap",
    [
        lambda rows: rows,
        lambda rows: Subset(rows, range(50)),
        lambda rows: ConcatDataset([Rows(), rows]),
    ],
    ids=["bare", "in a Subset", "in a ConcatDataset"],
)
def test_settings_of_data_come_back_and_data_stay_out(quiet: dict[str, Any], wrap: Any) -> None:
    data, callback = Data(wrap), SetsAndPutsBack()
    pl.Trainer(**quiet, max_steps=1, callbacks=[callback]).fit(Net(), data)
    assert (data.level, data.rows.strength) == (2, 0.9)
    assert data.rows.stages == ["warm up", "strong"]
    assert callback.lost == []
    kept = {name for names in callback.collected.values() for name in names}
    assert {"level", "strength", "stages"} <= kept
    assert not kept & {"rows", "cache", "train"}


class Views(Net):
    """Looks at its weights through views, alone and in a list, that no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.flat: Tensor | None = None
        self.parts: list[Tensor] = []

    def look(self) -> None:
        self.flat = self.net.weight.detach().view(-1)
        self.parts = [self.net.weight.detach()[:, :1], self.net.bias.detach()]


class MovesWeights(pl.Callback):
    """Has a view made before or after attributes are brought back, and then moves the weights."""

    def __init__(self, made: str) -> None:
        self.made = made

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        changes = ChangedAttributes(trainer)
        pl_module.look()
        kept = {"attributes": changes.collect(trainer)["attributes"], "flags": {}}
        if self.made == "later":
            pl_module.flat, pl_module.parts = None, []
        changes.restore(trainer, kept)
        if self.made == "later":
            pl_module.look()
        with torch.no_grad():
            pl_module.net.weight.fill_(3.0)
        assert pl_module.flat.tolist() == [3.0, 3.0]
        assert pl_module.parts[0].tolist() == [[3.0]]


class Averages(pl.Callback):
    """Begins with views of the weights, goes on with numbers of its own, and resumes anew."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.look()
        changes = ChangedAttributes(trainer)
        pl_module.flat = 0.9 * pl_module.flat
        pl_module.parts = [0.9 * part for part in pl_module.parts]
        own = pl_module.flat.clone(), [part.clone() for part in pl_module.parts]
        kept = {"attributes": changes.collect(trainer)["attributes"], "flags": {}}
        pl_module.look()
        changes.restore(trainer, kept)
        assert torch.equal(pl_module.flat, own[0])
        assert all(torch.equal(*pair) for pair in zip(pl_module.parts, own[1], strict=True))


def test_what_was_a_view_only_to_begin_with_comes_back(quiet: dict[str, Any]) -> None:
    data = Data(lambda rows: rows)
    pl.Trainer(**quiet, max_steps=1, callbacks=[Averages()]).fit(Views(), data)


@pytest.mark.parametrize("made", ["before", "later"])
def test_a_view_of_weights_stays_one_after_a_resume(quiet: dict[str, Any], made: str) -> None:
    data, callback = Data(lambda rows: rows), MovesWeights(made)
    pl.Trainer(**quiet, max_steps=1, callbacks=[callback]).fit(Views(), data)
