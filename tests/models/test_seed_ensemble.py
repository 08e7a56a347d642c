"""Members trained together are the members trained alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from medkit import keyed as keys
from medkit.data.batches import Batch
from medkit.data.ehr import EHRDataModule
from medkit.data.table_loader import TableLoader
from medkit.models.classifier import LitClassifier
from medkit.models.masks import LeanDropout
from medkit.models.seed_ensemble import SeedEnsemble, clip_each
from medkit.models.stacked_loader import stacked
from medkit.models.tabular import warm_classifier
from medkit.synth.ehr import MISSING_CODES
from medkit.trainer import keyed, stable_trainer, start_run
from tests.callbacks.small import after_kills, training

ENCOUNTERS = Path(__file__).parents[2] / "data_samples" / "ehr" / "encounters.csv"


def lean_net(*, inputs: int, hidden: int = 10) -> nn.Module:
    first = [nn.Linear(inputs, hidden), nn.ReLU(), LeanDropout(0.3)]
    return nn.Sequential(*first, nn.Linear(hidden, 7), nn.GELU(), nn.Linear(7, 1))


NETS: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp": ("medkit.models.nets:mlp", {"inputs": 5, "hidden": [10, 6], "dropout": 0.3}),
    "lean": (f"{__name__}:lean_net", {"inputs": 5}),
    "warm": (
        "medkit.models.tabular:warm_mlp",
        {"coef": [0.5, -1.0, 0.2, 0.0, 0.1], "intercept": -1.0, "periodic": 3, "hidden": [9]},
    ),
    "smooth": (
        "medkit.models.tabular:warm_mlp",
        {"coef": [0.5, -1.0, 0.2, 0.0, 0.1], "intercept": -1.0, "periodic": 3, "hidden": [9]}
        | {"activation": "gelu"},
    ),
}


class Small(pl.LightningDataModule):
    """53 rows in batches of 16, so the last one is short; 21 more to validate on."""

    def __init__(self) -> None:
        super().__init__()
        draw = keys.generator(0, "test")
        x = torch.from_numpy(draw.normal(size=(74, 5))).float()
        y = (x[:, 0] + torch.from_numpy(draw.normal(size=74)) > 0.3).long()
        rows = Batch(x, y, torch.arange(74), torch.zeros(74).long())
        self.part = {"train": Batch(*(f[:53] for f in rows)), "val": Batch(*(f[53:] for f in rows))}

    def train_dataloader(self) -> TableLoader:
        return TableLoader(self.part["train"], 16, shuffle=True)

    def val_dataloader(self) -> TableLoader:
        return TableLoader(self.part["val"], 16)

    test_dataloader = predict_dataloader = val_dataloader


def ensemble(net: str, seeds: Any, **settings: Any) -> SeedEnsemble:
    known = {"total_steps": 16, "lr": 1e-2}
    return SeedEnsemble(*NETS[net], seeds=seeds, **(known | settings))


def fit(lit: Any, data: Any, folder: Path, *, seed: int = 99, epochs: int = 4, **o: Any) -> Any:
    """Fit a module, or what a function makes inside ``run.init``; return the Trainer."""
    run = start_run(folder, seed=seed)
    if not isinstance(lit, pl.LightningModule):
        with run.init("fit"):
            lit = lit()
    options = {"accelerator": "cpu", "enable_progress_bar": False, "checkpoint_every_s": None}
    trainer = stable_trainer(run, max_epochs=epochs, **(options | o))
    trainer.fit(lit, keyed(data))
    run.finish()
    return trainer


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_member_has_the_same_bits_in_a_stack_of_another_size(
    net: str, threads: int, tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    found = []
    try:
        for number, seeds in enumerate([(3, 4), (8, 3, 5, 4, 7, 6, 1), (4, 9, 3)]):
            lit = ensemble(net, seeds)
            data = stacked(Small(), seeds)
            fit(lit, data, tmp_path / str(number), epochs=2, gradient_clip_val=0.5)
            found.append([lit.member(seed).net.state_dict() for seed in (3, 4)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for mine, theirs in zip(found[0], other, strict=True):
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    first, second = found[0]
    assert any(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("seeds", [(4, 3), (3, 5)])
def test_batches_of_other_members_are_refused(seeds: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"in their order; found"):
        fit(ensemble("mlp", (3, 4)), stacked(Small(), seeds), tmp_path)


def test_data_may_be_keyed_before_they_are_stacked_or_after(tmp_path: Path) -> None:
    seeds, found = (3, 4), []
    before, after = stacked(keyed(Small(), seed=99), seeds), keyed(stacked(Small(), seeds), seed=99)
    for name, data in (("before", before), ("after", after)):
        lit = ensemble("mlp", seeds)
        fit(lit, data, tmp_path / name)
        found.append(lit.net.rows())
    assert torch.equal(*found)


@pytest.mark.parametrize("net", NETS)
def test_a_member_is_its_run_alone(net: str, tmp_path: Path) -> None:
    seeds = (3, 4, 5)
    lit = ensemble(net, seeds)
    fit(lit, stacked(Small(), seeds), tmp_path / "all", gradient_clip_val=0.5)
    data = Small()
    trainer = fit(
        lambda: LitClassifier(*NETS[net], total_steps=16, lr=1e-2),
        data,
        tmp_path / "alone",
        seed=4,
        gradient_clip_val=0.5,
    )
    alone = trainer.lightning_module
    x = data.part["val"].x
    torch.testing.assert_close(lit.eval().prob(x)[1], alone.eval().prob(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(lit.member(4).prob(x), alone.prob(x), rtol=0, atol=1e-5)
    row = lit.table().query("seed == 4").iloc[-1]
    for name in ("loss", "auroc", "auprc", "brier"):
        assert row[name] == pytest.approx(float(trainer.callback_metrics[f"val/{name}"]), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "seeds"), [("warm", range(8)), ("plain", (0, 3))])
def test_over_the_budget_of_the_recipe_it_still_is(
    recipe: str, seeds: Sequence[int], tmp_path: Path
) -> None:
    def data() -> EHRDataModule:
        dm = EHRDataModule(ENCOUNTERS, target="died", site="site", missing_codes=MISSING_CODES)
        dm.setup()
        return dm

    def model(dm: EHRDataModule) -> LitClassifier:
        if recipe == "warm":
            return warm_classifier(dm, max_epochs=30)
        steps = 30 * dm.batches_per_epoch
        net = {"inputs": dm.num_features}
        return LitClassifier("medkit.models.nets:mlp", net, total_steps=steps)

    dm = data()
    lit = SeedEnsemble.of(model(dm), seeds)
    fit(lit, stacked(dm, seeds), tmp_path / "all", epochs=30)
    x = dm.rows("val").x
    for together, seed in zip(lit.eval().prob(x), seeds, strict=True):
        trainer = fit(lambda: model(dm), data(), tmp_path / str(seed), seed=seed, epochs=30)
        alone = trainer.lightning_module
        assert (together - alone.eval().prob(x)).abs().max() < 1e-5


def test_a_kill_leaves_no_trace(tmp_path: Path) -> None:
    train = training(lambda: ensemble("warm", (1, 2, 3)), lambda: stacked(Small(), (1, 2, 3)))
    assert after_kills(train, tmp_path) == {}


def test_a_member_that_diverges_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    seeds, found = (3, 4, 5), []
    for number, bad in enumerate([0.0, float("nan")]):
        lit = ensemble("mlp", seeds)
        rows = lit.net.rows()
        rows[1] += bad
        lit.net.put(rows)
        fit(lit, stacked(Small(), seeds), tmp_path / str(number), gradient_clip_val=0.5)
        found.append(lit.net.rows())
    assert found[1][1].isnan().any()
    assert lit.table().query("seed == 4")["auroc"].isna().all()
    assert torch.equal(found[0][::2], found[1][::2])


def test_the_spike_guard_would_skip_the_step_of_all_and_steps_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        fit(
            ensemble("mlp", (1, 2)),
            stacked(Small(), (1, 2)),
            tmp_path / "run",
            epochs=1,
            spike_guard=True,
        )
    assert "does not guard this fit: its members are trained apart" in caplog.text


def test_each_member_is_clipped_by_its_own_norm() -> None:
    first, second = torch.tensor([[3.0], [0.3], [0.0]]), torch.tensor([[4.0], [0.4], [0.0]])
    clip_each([first, second], 1.0)
    torch.testing.assert_close(first, torch.tensor([[0.6], [0.3], [0.0]]))
    torch.testing.assert_close(second, torch.tensor([[0.8], [0.4], [0.0]]))


def test_the_best_epoch_of_each_member_is_kept(tmp_path: Path) -> None:
    seeds, weights = (1, 2, 3, 4), []

    class Watch(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            weights.append(pl_module.net.rows())

    lit = ensemble("mlp", seeds, lr=0.1, total_steps=None, best_epoch=True)
    data = stacked(Small(), seeds)
    trainer = fit(lit, data, tmp_path / "run", epochs=6, callbacks=[Watch()])
    table = lit.table().query("seed >= 0")
    best = table.loc[table.groupby("seed")["loss"].idxmin(), "epoch"].tolist()
    assert lit.best_at.tolist() == best
    assert len(set(best)) > 1
    last = lit.net.rows()
    lit.net.put(torch.stack([weights[e][m] for m, e in enumerate(best)]))
    expected = lit.eval().prob(data.part["val"].x)
    lit.net.put(last)
    scored = trainer.predict(lit, data)
    got = torch.cat([part.prob for part in scored])
    torch.testing.assert_close(got, expected.mean(0))
    torch.testing.assert_close(lit.member(3).prob(data.part["val"].x), expected[2])
    assert torch.equal(lit.net.rows(), last)


def test_mean_sd_and_ensemble_are_logged_and_each_member_is_in_the_table(tmp_path: Path) -> None:
    lit = ensemble("mlp", (1, 2, 3))
    data = stacked(Small(), (1, 2, 3))
    trainer = fit(lit, data, tmp_path / "run", epochs=2)
    logged = trainer.callback_metrics
    table = lit.table()
    assert table["seed"].tolist() == [1, 2, 3, -1] * 2
    last = table.iloc[-4:-1]["auroc"]
    assert float(logged["val/auroc"]) == pytest.approx(last.mean(), abs=1e-6)
    assert float(logged["val/auroc_sd"]) == pytest.approx(last.std(), abs=1e-6)
    tested = trainer.test(lit, data, verbose=False)[0]
    rows = data.part["val"]
    mean = lit.eval().prob(rows.x).mean(0).detach()
    brier = (mean - rows.y).square().mean()
    assert tested["test/brier_ensemble"] == pytest.approx(float(brier), abs=1e-6)
    assert len(lit.table("test")) == 4


def test_a_checkpoint_brings_members_and_curves_back(tmp_path: Path) -> None:
    lit = ensemble("warm", (1, 2))
    data = stacked(Small(), (1, 2))
    trainer = fit(lit, data, tmp_path / "run", epochs=2)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    again = SeedEnsemble.load_from_checkpoint(tmp_path / "one.ckpt", weights_only=True)
    x = data.part["val"].x
    assert torch.equal(again.member(2).prob(x), lit.member(2).prob(x))
    assert again.table().equals(lit.table())


@pytest.mark.parametrize("seeds", [(1,), (1, 1)])
def test_members_have_different_seeds(seeds: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="two or more different seeds"):
        ensemble("mlp", seeds)


def test_batches_must_hold_rows_for_each_member(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Fit with stacked"):
        fit(ensemble("mlp", (1, 2)), Small(), tmp_path / "run")


def test_a_member_is_named_by_its_seed() -> None:
    with pytest.raises(ValueError, match="one of \\[1, 2\\]; got 0"):
        ensemble("mlp", (1, 2)).member(0)


def test_stacked_data_are_as_before_where_another_module_is_fitted(tmp_path: Path) -> None:
    data, again = stacked(Small(), (1, 2)), stacked(stacked(Small(), (5, 6)), (1, 2))
    weights = []
    for number, each in enumerate((data, again)):
        lit = ensemble("mlp", (1, 2))
        fit(lit, each, tmp_path / f"{number}", epochs=1)
        weights.append(lit.net.rows())
    assert torch.equal(*weights)

    def solo() -> LitClassifier:
        return LitClassifier(*NETS["mlp"], total_steps=16, lr=1e-2)

    nets = []
    for name, each in (("stacked", data), ("new", Small())):
        trainer = fit(solo, each, tmp_path / name, epochs=1)
        nets.append(trainer.lightning_module.net.state_dict())
    assert all(torch.equal(nets[0][name], value) for name, value in nets[1].items())


def test_processes_take_seeds_of_their_own() -> None:
    lit = ensemble("mlp", (1, 2))
    lit._trainer = SimpleNamespace(world_size=2)  # type: ignore[assignment]
    lit._fabric = None
    with pytest.raises(ValueError, match="seeds of its own"):
        lit.setup("fit")


def test_a_module_with_a_loss_of_its_own_is_refused() -> None:
    net = ("medkit.models.nets:mlp", {"inputs": 5})
    assert SeedEnsemble.of(LitClassifier(*net), range(2)).seeds == (0, 1)
    with pytest.raises(ValueError, match=r"by cross entropy, and this module by 'focal'.*sweep"):
        SeedEnsemble.of(LitClassifier(*net, loss="focal"), range(2))
