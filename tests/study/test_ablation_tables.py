from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import logit
from torch import Tensor

from medkit.study import table_practices
from medkit.study.outcomes import Outcome
from medkit.study.table_members import WatchedMembers
from medkit.study.table_practices import PRACTICES, table_ablation, train
from medkit.study.table_recipe import TableRecipe
from medkit.synth.ehr import contract_yaml, make_hospitals

SMALL: dict[str, Any] = {"epochs": 2, "looks": 3, "weigh": False}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("hospitals")
    drawn = make_hospitals(seed=1, stays={"A": 260, "B": 160, "C": 120})
    (folder / "table.csv").write_text(drawn.encounters_csv())
    (folder / "contract.yaml").write_text(contract_yaml())
    columns = {"target": "died", "site": "site", "contract": str(folder / "contract.yaml")}
    return {"csv_path": str(folder / "table.csv"), "columns": columns}


def end(table: dict[str, Any], seeds: list[int] | None = None, **settings: Any) -> list[Outcome]:
    return list(train(table | SMALL | settings, seeds or [3, 4], 0, "C"))


def scores(outcome: Outcome) -> Any:
    assert outcome.predictions is not None
    return outcome.predictions["score"].to_numpy()


def values(table: dict[str, Any], column: str, site: str, **settings: Any) -> Any:
    dm = TableRecipe.of(table | settings).data(split_seed=0, site="C", fold=0)
    assert dm.table is not None
    at = dm.table.site == site
    return dm.table.values[at, dm.table.features.index(column)]


def test_each_seed_leaves_curves_on_both_parts_and_scores_of_the_held_out_site(
    table: dict[str, Any],
) -> None:
    first, second = end(table)
    assert (first.seed, second.seed) == (3, 4)
    assert set(first.curves) == {"val/loss", "val/auroc", "monitor/loss", "monitor/auroc"}
    assert len(first.steps) == 3
    assert first.steps[-1] == 2 * -(-int(first.steps[-1]) // 2)  # both epochs
    # the last look is after the last step: what is kept
    assert first.curves["monitor/loss"][-1] == first.metrics["test/loss"]
    assert first.curves["val/auroc"][-1] == first.metrics["val/auroc"]
    assert first.predictions is not None
    assert set(first.predictions["site"]) == {"C"}
    assert len(first.predictions) == 120
    assert first.checked().status == "done"
    assert not np.array_equal(scores(first), scores(second))


def test_a_member_does_not_depend_on_its_company(table: dict[str, Any]) -> None:
    alone, (_, among) = end(table, [4]), end(table, [3, 4])
    assert len(alone) == 1
    assert np.array_equal(scores(alone[0]), scores(among))
    assert alone[0].weights_sha256 == among.weights_sha256


def test_five_seeds_of_a_seed_are_averaged(table: dict[str, Any]) -> None:
    (averaged,) = end(table, [2], members=3)
    alone = end(table, [6, 7, 8])
    assert scores(averaged) == pytest.approx(np.mean([scores(one) for one in alone], 0), abs=1e-6)
    assert averaged.seed == 2
    assert len(averaged.curves["monitor/loss"]) == 3
    assert len({averaged.weights_sha256, *(one.weights_sha256 for one in alone)}) == 4


def test_patients_and_rows_leave_as_pseudonyms(table: dict[str, Any]) -> None:
    (outcome,) = end(table, [3])
    assert outcome.predictions is not None
    ids = set(pd.read_csv(table["csv_path"])["patient_id"])
    assert not ids & set(outcome.predictions["patient"])
    assert outcome.predictions["row"].str.fullmatch("[0-9a-f]{16}").all()


@pytest.mark.parametrize(
    "settings",
    [
        *({"ema": 0.5}, {"optimizer": "sgd"}, {"clip": 1e-3}, {"folds": 2}, {"start": "random"}),
        *({"schedule": "constant"}, {"dropout": 0.0}, {"weight_decay": 0.01}, {"lr": 1e-4}),
        *({"scaling": "standard"}, {"indicators": False}, {"draws": "balanced"}),
    ],
)
def test_each_switch_changes_what_is_trained(
    table: dict[str, Any], settings: dict[str, Any]
) -> None:
    usual, other = end(table)[0], end(table, **settings)[0]
    assert not np.allclose(scores(usual), scores(other), rtol=0, atol=1e-6)
    assert other.checked().status == "done"


def test_logistic_regression_draws_nothing(table: dict[str, Any]) -> None:
    first, second = end(table, model="logistic")
    assert np.array_equal(scores(first), scores(second))
    assert len(first.steps) == 0
    dm = TableRecipe.of(table).data(split_seed=0, site="C", fold=0)
    assert scores(first) == pytest.approx(dm.baseline.prob(dm.rows("test").x), abs=1e-6)


def test_balanced_draws_shift_probabilities_unless_the_prior_is_put_back(
    table: dict[str, Any],
) -> None:
    settings = {"epochs": 8, "looks": 1}
    plain, raw, back = (
        end(table, **settings | {"draws": draws})[0]
        for draws in ("shuffled", "balanced", "balanced, prior put back")
    )
    assert raw.metrics["val/brier"] > 1.2 * plain.metrics["val/brier"]
    assert back.metrics["val/brier"] < 1.1 * plain.metrics["val/brier"]
    # the curves are compared between arms: there the prior is always back
    assert np.array_equal(raw.curves["val/loss"], back.curves["val/loss"])
    assert back.curves["val/loss"][-1] == back.metrics["val/loss"]


def test_the_best_epoch_is_kept_where_that_is_asked_for(table: dict[str, Any]) -> None:
    settings = {"epochs": 12, "looks": 12, "start": "random", "schedule": "constant", "lr": 0.01}
    settings |= {"weight_decay": 0.01}  # it overfits: the last epoch is not the best
    last, best = (end(table, **settings | {"best_epoch": yes})[0] for yes in (False, True))
    assert np.array_equal(last.curves["val/loss"], best.curves["val/loss"])
    assert last.metrics["val/loss"] == last.curves["val/loss"][-1]
    assert best.metrics["val/loss"] == best.curves["val/loss"].min()
    assert best.metrics["val/loss"] < last.metrics["val/loss"]


def test_validation_rows_weigh_what_the_net_adds_to_logistic_regression(
    table: dict[str, Any],
) -> None:
    net, weighed = (end(table, epochs=8, lr=0.02, weigh=yes)[0] for yes in (False, True))
    start = end(table, model="logistic")[0]
    added, kept = (logit(scores(one)) - logit(scores(start)) for one in (net, weighed))
    share = kept @ added / (added @ added)
    assert 0 <= share < 0.9
    assert kept == pytest.approx(share * added, abs=1e-4)
    assert weighed.metrics["val/loss"] <= min(net.metrics["val/loss"], start.metrics["val/loss"])
    assert np.array_equal(net.curves["val/loss"], weighed.curves["val/loss"])


def test_folds_are_averaged_and_validated_each_on_its_own_rows(table: dict[str, Any]) -> None:
    parts = []
    for fold in range(2):
        recipe = TableRecipe.of(table | SMALL | {"folds": 2})
        dm = recipe.data(split_seed=0, site="C", fold=fold)
        parts.append(table_practices._fit(recipe, dm, [3, 4], stage=f"fold-{fold}"))
    whole = end(table, folds=2)[0]
    mean = np.mean([part.test[-1][0].double().sigmoid().numpy() for part in parts], axis=0)
    assert scores(whole) == pytest.approx(mean, abs=1e-12)
    y = torch.cat([part.dm.rows("val").y for part in parts])
    assert len(y) == 420
    logits = torch.cat([part.val[-1][0] for part in parts]).double()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y.double())
    assert whole.metrics["val/loss"] == pytest.approx(loss.item())


def test_an_average_of_weights_is_what_is_looked_at_and_kept(
    table: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lives: list[Tensor] = []
    fitted: list[WatchedMembers] = []
    step = WatchedMembers.on_train_batch_end

    def seen(self: WatchedMembers, *arguments: Any) -> None:
        lives.append(self.net.rows())
        step(self, *arguments)
        fitted[:] = [self]
        assert torch.equal(self.net.rows(), lives[-1])  # training goes on with its own weights

    monkeypatch.setattr(WatchedMembers, "on_train_batch_end", seen)
    outcome = end(table, ema=0.5)[0]
    average = lives[0]
    for number, live in enumerate(lives, start=1):
        share = min(0.5, (1 + number) / (10 + number))
        average = share * average + (1 - share) * live
    torch.testing.assert_close(fitted[0].net.rows(), average)
    assert outcome.curves["val/loss"][-1] == outcome.metrics["val/loss"]


def test_parts_of_the_contract_are_switched_off_apart(table: dict[str, Any]) -> None:
    everything = values(table, "creatinine", "C")
    no_units = values(table, "creatinine", "C", units=False, ranges=False)
    there = np.isfinite(everything) & (no_units > 0)
    assert no_units[there] == pytest.approx(everything[there] * 88.42, rel=2e-3)
    # codes alone off: the ranges still catch them; both off: they are numbers
    assert not (values(table, "sodium", "A", codes=False) == -1).any()
    assert (values(table, "sodium", "A", codes=False, ranges=False) == -1).any()
    assert not (values(table, "sodium", "A", ranges=False) == -1).any()
    nothing = values(table, "creatinine", "C", units=False, ranges=False, codes=False)
    assert np.nanmedian(nothing) > 50


def test_the_recipe_is_the_kits_and_clip_and_ema_are_only_tried(table: dict[str, Any]) -> None:
    of = table_ablation(**table)
    assert TableRecipe.of(of.arms()["recipe"]) == TableRecipe.of(table)
    unused = {practice.name for practice in PRACTICES if not practice.used}
    assert {"gradient clip 1.0", "EMA 0.98"} <= unused
    assert {f"recipe with {name}" for name in unused} <= of.arms().keys()
    start = TableRecipe.of(of.arms()["start"])
    assert start == TableRecipe.of(
        {
            **table,
            **{"scaling": "standard", "indicators": False, "draws": "balanced", "weigh": False},
            **{"schedule": "constant", "dropout": 0.0, "weight_decay": 0.01, "start": "random"},
        }
    )
    assert TableRecipe.of(of.arms()["nothing"]).codes is False
    for arm in of.arms().values():
        TableRecipe.of(arm)


def test_without_a_contract_codes_units_and_ranges_are_no_practices(
    table: dict[str, Any],
) -> None:
    of = table_ablation(table["csv_path"], {"target": "died", "site": "site"})
    assert not {"recipe without units", "nothing"} & of.arms().keys()
    assert "recipe without dropout" in of.arms()


def test_settings_that_are_not_known_are_refused(table: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must have csv_path.*found \['drop_out'\].*columns"):
        TableRecipe.of(table | {"drop_out": 0.5})
    with pytest.raises(
        ValueError, match=r"optimizer must be one of \['adamw', 'sgd'\], got 'lion'"
    ):
        table_ablation(**table, optimizer="lion")
    with pytest.raises(ValueError, match=r"leave_out must name some of.*got \['clip'\].*Spell"):
        table_ablation(**table, leave_out=["clip"])


def test_a_split_without_test_rows_is_refused(table: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"judged on test rows, and this split has none. Put test"):
        list(train(table | SMALL, [0], 0, ""))
