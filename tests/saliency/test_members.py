from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import logit

from medkit.data.ehr import EHRDataModule
from medkit.models.classifier import LitClassifier
from medkit.models.ensemble import FoldEnsemble, Member
from medkit.models.tabular import warm_classifier
from medkit.saliency.attribution import integrated_gradients
from medkit.saliency.members import EnsembleNet, attribute_members, member_rows
from medkit.saliency.randomisation import randomisation_test
from medkit.saliency.shapley import shapley_values
from medkit.synth.ehr import MISSING_CODES, make_hospitals

FOLDS = 3
HOW = {
    "integrated gradients": partial(integrated_gradients, steps=32),
    "Shapley values": partial(shapley_values, permutations=10),
}


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "table.csv"
    path.write_text(make_hospitals(stays={"A": 150, "B": 150}).encounters_csv())
    return path


def member(csv: Path, fold: int, draws: str = "shuffled") -> Member:
    settings = {"target": "died", "site": "site", "missing_codes": MISSING_CODES, "draws": draws}
    dm = EHRDataModule(csv, **settings, folds=FOLDS, fold=fold)
    dm.setup()
    torch.manual_seed(fold)
    model = warm_classifier(dm, max_epochs=1, net_args={"hidden": [8]})
    with torch.no_grad():  # as if it had learnt something
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return Member(f"fold{fold}", dm, model.eval())


@pytest.fixture(scope="module")
def ensemble(csv: Path) -> FoldEnsemble:
    draws = ["shuffled", "balanced", "shuffled"]
    return FoldEnsemble(tuple(member(csv, fold, draws[fold]) for fold in range(FOLDS)), weight=0.6)


@pytest.fixture(scope="module")
def table(csv: Path) -> pd.DataFrame:
    return pd.read_csv(csv).head(25)


def test_a_member_s_net_says_what_the_ensemble_takes_the_member_to_say(
    ensemble: FoldEnsemble, table: pd.DataFrame
) -> None:
    net = EnsembleNet(ensemble)
    for index, one in enumerate(ensemble.members):
        want = logit(one.prob(one.dm.apply(table), weight=ensemble.weight))
        said = net.members[index](member_rows(ensemble, table)[index])
        np.testing.assert_allclose(said.detach(), want, atol=1e-4)


@pytest.mark.parametrize("how", HOW)
def test_shares_add_up_to_the_mean_of_the_members_log_odds(
    ensemble: FoldEnsemble, table: pd.DataFrame, how: str
) -> None:
    net = EnsembleNet(ensemble)
    xs = member_rows(ensemble, table)
    found = attribute_members(net, xs, how=HOW[how])
    change = (net(xs) - net([torch.zeros_like(x) for x in xs])).detach()
    torch.testing.assert_close(found.values.sum(1), change, atol=0.02, rtol=0.02)
    torch.testing.assert_close(found.values, found.members.mean(0))
    assert found.names == tuple(ensemble.members[0].dm.table.features)
    assert found.members.shape == (FOLDS, 25, 20)
    assert found.importance.shape == (FOLDS, 20)


def test_without_the_nets_shares_are_those_of_each_member_s_logistic_regression(
    ensemble: FoldEnsemble, table: pd.DataFrame
) -> None:
    ensemble = FoldEnsemble(ensemble.members, weight=0.0)
    net = EnsembleNet(ensemble)
    arrivals, background = member_rows(ensemble, table), member_rows(ensemble, table.head(4))
    found = attribute_members(net, arrivals, how=HOW["Shapley values"], baselines=background)
    for index, one in enumerate(ensemble.members):
        names = [name.removesuffix(" missing") for name in one.dm.features]
        each = torch.tensor(one.dm.baseline.coef) * (arrivals[index] - background[index].mean(0))
        want = pd.DataFrame(each.T.double().numpy(), index=names).groupby(level=0).sum().T
        got = pd.DataFrame(found.members[index].numpy(), columns=list(found.names))
        # five pairs of orders for four rows: the first counts twice
        np.testing.assert_allclose(got.corrwith(want[got.columns], axis=1), 1, atol=0.2)
        even = shapley_values(
            net.members[index],
            arrivals[index],
            baseline=background[index],
            players=net.players[index],
            permutations=8,
        )
        np.testing.assert_allclose(even.values, want[got.columns], atol=1e-4)


def test_the_randomisation_test_reaches_logistic_regression_outside_the_net(
    ensemble: FoldEnsemble, table: pd.DataFrame
) -> None:
    ensemble = FoldEnsemble(ensemble.members, weight=0.0)
    net = EnsembleNet(ensemble)
    explain = partial(attribute_members, how=partial(integrated_gradients, steps=2))
    found = randomisation_test(net, member_rows(ensemble, table), explain)
    assert found.passed
    assert {"members.0.coef", "members.0.net.coef"} <= set(found.randomised)
    inside = [name for name in found.randomised if ".net." in name]
    outside = sorted(set(found.randomised) - set(inside))
    assert not randomisation_test(net, member_rows(ensemble, table), explain, keep=outside).passed


def test_a_member_without_a_baseline_is_its_net(csv: Path, table: pd.DataFrame) -> None:
    dm = EHRDataModule(csv, target="died", site="site", baseline_c=None, folds=FOLDS, fold=0)
    dm.setup()
    plain = LitClassifier("medkit.models.nets:mlp", {"inputs": dm.num_features})
    ensemble = FoldEnsemble((Member("fold0", dm, plain),))
    x = member_rows(ensemble, table)
    torch.testing.assert_close(EnsembleNet(ensemble)(x), plain.eval()(x[0]))


def test_rows_of_one_member_for_all_are_refused(
    ensemble: FoldEnsemble, table: pd.DataFrame
) -> None:
    net = EnsembleNet(ensemble)
    x = member_rows(ensemble, table)
    with pytest.raises(ValueError, match=r"each of the 3 members needs its own x .*got 1 and none"):
        attribute_members(net, x[:1])
    with pytest.raises(ValueError, match=r"got 3 and 2\. Make both by member_rows"):
        attribute_members(net, x, baselines=x[:2])
