"""What the benchmark of tables' stability is made of."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from benchmarks import _hurried
from benchmarks._stable_tables import Runs, Watch, entropy, hospitals, recipe
from medkit import keyed


def test_the_loss_of_an_ensemble_is_that_of_its_mean_probability() -> None:
    logits = torch.logit(torch.tensor([[[0.2], [0.6], [0.9], [0.9], [0.5]]]))
    together = entropy(logits, torch.tensor([1]), together=2)
    assert together == pytest.approx(-np.log([[0.4], [0.9]]), abs=1e-6)


def test_the_script_by_hand_passes_through_what_a_shorter_one_ends_with() -> None:
    draw = keyed.generator(0, "test")
    x = torch.from_numpy(draw.normal(size=(70, 3))).float()
    y = (x[:, 0] > 0.5).long()

    def said(*epochs: int) -> np.ndarray:
        return _hurried.train(x, y, seed=1, watch={}, new=x, epochs=epochs).prob[2]

    assert np.array_equal(said(2), said(2, 5))


def test_nets_that_add_nothing_but_noise_count_for_nothing() -> None:
    draw = keyed.generator(0, "test")
    start = draw.normal(size=200)
    y = (draw.random(200) < 1 / (1 + np.exp(-start))).astype(np.int64)
    wrong = start + 3 * (1 - 2 * y)
    runs = Runs(
        None, wrong[None], wrong[None], Watch({}, 1), (start, start), y, np.array([True])  # type: ignore[arg-type]
    )  # fmt: skip
    new, _, weight = runs.prob()
    assert weight.tolist() == [0.0]
    assert new[0] == pytest.approx(1 / (1 + np.exp(-start)))


def test_looking_at_a_training_does_not_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks._stable_tables.EPOCHS", 2)
    found = []
    with hospitals("additive", 0, 60) as cohort:
        for looks in (88, 0):
            monkeypatch.setattr("benchmarks._stable_tables.LOOKS", looks)
            runs = recipe(cohort, cohort.data(), [3, 4], monitor=False)
            assert len(runs.watch.steps["val"]) == min(looks, 2 * runs.dm.batches_per_epoch)
            found.append(hashlib.sha256(runs.new.tobytes()).hexdigest())
    assert found[0] == found[1]
