from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medkit import keyed
from medkit.data.ehr import EHRDataModule
from medkit.models.classifier import LitClassifier
from medkit.models.nets import build
from medkit.models.tabular import PeriodicColumns, warm_classifier, warm_mlp
from medkit.synth.ehr import MISSING_CODES

ENCOUNTERS = Path(__file__).parents[2] / "data_samples" / "ehr" / "encounters.csv"
COEF = [0.5, -1.0, 2.0, 0.0]


def x_of(rows: int = 32, columns: int = 4) -> torch.Tensor:
    return torch.from_numpy(keyed.generator(0, "test").normal(size=(rows, columns))).float()


def make(**settings: Any) -> EHRDataModule:
    known = {"target": "died", "site": "site", "missing_codes": MISSING_CODES}
    dm = EHRDataModule(ENCOUNTERS, **(known | settings))
    dm.setup()
    return dm


@pytest.mark.parametrize("periodic", [0, 3])
def test_the_net_begins_as_the_logistic_regression(periodic: int) -> None:
    net = warm_mlp(coef=COEF, intercept=-0.3, periodic=periodic).eval()
    x = x_of()
    torch.testing.assert_close(net(x)[:, 0], x @ torch.tensor(COEF) - 0.3)


def test_the_residual_learns_and_the_logistic_regression_stays() -> None:
    with keyed.globals_keyed(0, "init"):
        net = warm_mlp(coef=COEF, intercept=-0.3, periodic=4, dropout=0.0)
    x = x_of(256)
    target = (x[:, 0].abs() > 1).float()  # both ends: no linear model can hold it
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(150):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(net(x)[:, 0], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2
    assert net.coef.tolist() == COEF


def test_decay_pulls_the_net_back_to_the_logistic_regression() -> None:
    net = warm_mlp(coef=COEF, intercept=-0.3).eval()
    last = [layer for layer in net.modules() if isinstance(layer, torch.nn.Linear)][-1]
    torch.nn.init.ones_(last.weight)
    x = x_of()
    linear = x @ torch.tensor(COEF) - 0.3
    far = (net(x)[:, 0] - linear).abs().mean()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= 0.1  # what weight decay does when the loss says nothing
    assert (net(x)[:, 0] - linear).abs().mean() < 0.1 * far


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_curves_are_activated_sums_of_sines_and_cosines_of_their_own_column(
    activation: str,
) -> None:
    with keyed.globals_keyed(0, "init"):
        layer = PeriodicColumns(2, frequencies=3, curves=2, activation=activation)
    x = x_of(5, 3)
    got = layer(x)
    assert got.shape == (5, 3 + 4)
    torch.testing.assert_close(got[:, :3], x, rtol=0, atol=0)
    angle = 2 * math.pi * x[4, 1] * layer.frequency[1]
    want = torch.cat([angle.sin(), angle.cos()]) @ layer.weight[1] + layer.bias[1, 0]
    rule = {"relu": F.relu, "gelu": lambda x: F.gelu(x, approximate="tanh")}[activation]
    torch.testing.assert_close(got[4, 5:], rule(want))


def test_weights_depend_on_the_seed_and_not_on_the_global_generator() -> None:
    nets = []
    for seed, state in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(state)
        with keyed.globals_keyed(seed, "init", "fold0"):
            nets.append(warm_mlp(coef=COEF, intercept=0.0, periodic=4))
    first, again, other = (net.residual[0].frequency for net in nets)
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    assert not torch.equal(first, other)


def test_the_default_model_says_at_first_what_the_baseline_says() -> None:
    dm = make(test_site="C")
    rows = dm.rows("val")
    model = warm_classifier(dm, max_epochs=2).eval()
    np.testing.assert_allclose(
        model.prob(rows.x).detach().numpy(), dm.baseline.prob(rows.x), atol=2e-6
    )
    assert model.total_steps == 2 * dm.batches_per_epoch
    assert model.net.residual[0].columns == 20


def test_balanced_draws_leave_the_first_probabilities_as_they_are() -> None:
    dm = make(test_site="C", draws="balanced")
    rows = dm.rows("val")
    said = warm_classifier(dm, max_epochs=2).eval().prob(rows.x).detach().numpy()
    np.testing.assert_allclose(said, dm.baseline.prob(rows.x), atol=2e-6)


def test_a_checkpoint_rebuilds_the_net_with_weights_only(
    tmp_path: Path, quiet: dict[str, Any]
) -> None:
    import pytorch_lightning as pl

    dm = make(batch_size=512)
    model = warm_classifier(dm, max_epochs=1)
    trainer = pl.Trainer(**quiet, max_epochs=1)
    trainer.fit(model, dm)
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    loaded = LitClassifier.load_from_checkpoint(tmp_path / "net.ckpt", weights_only=True)
    x = dm.rows("val").x
    torch.testing.assert_close(loaded.eval().prob(x), model.eval().prob(x), rtol=0, atol=0)


def test_the_default_model_is_smooth_and_a_net_that_says_nothing_is_as_before() -> None:
    def kinds(net: nn.Module) -> list[type[nn.Module]]:
        return [type(m) for m in net.modules() if isinstance(m, nn.ReLU | nn.GELU)]

    assert kinds(warm_classifier(make(), max_epochs=1)) == [nn.GELU] * 2
    before = warm_mlp(coef=COEF, intercept=0.0, periodic=4)
    assert kinds(before) == [nn.ReLU] * 2
    assert before.residual[1][0].out_features == 32


def test_the_factory_is_found_by_its_name() -> None:
    arguments = {"coef": COEF, "intercept": 0.0}
    assert build("medkit.models.tabular:warm_mlp", arguments)(x_of()).shape == (32, 1)


def test_more_curves_than_columns_are_refused() -> None:
    with pytest.raises(ValueError, match=r"between 0 and the number of columns, got 5 for 4"):
        warm_mlp(coef=COEF, intercept=0.0, periodic=5)
