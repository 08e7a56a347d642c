from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medkit import keyed
from medkit.models.tabular import WarmMLP, warm_mlp
from medkit.saliency.attribution import Attribution, integrated_gradients
from medkit.saliency.randomisation import (
    compare,
    label_randomisation_test,
    randomisation_test,
)
from medkit.saliency.shapley import shapley_values

COLUMNS = 14
X = torch.randn(40, COLUMNS, generator=keyed.torch_generator(0, "rows"))
X[:, 8:] = (X[:, 8:] > 0.5).float()  # indicators: mostly 0, as their baseline is
HOW = {
    "integrated gradients": partial(integrated_gradients, steps=8),
    "Shapley values": partial(shapley_values, permutations=8),
}


def trained(seed: int = 0, *, shuffled: bool = False) -> WarmMLP:
    """A warm net after some steps on a rule that a few columns decide."""
    rows = torch.randn(600, COLUMNS, generator=keyed.torch_generator(seed, "train"))
    rows[:, 8:] = (rows[:, 8:] > 0.5).float()
    y = (rows[:, 0] * 2 - rows[:, 1] + rows[:, 2] * rows[:, 3] + rows[:, 9] > 0).float()
    if shuffled:
        y = y[torch.from_numpy(keyed.generator(seed, "shuffle").permutation(600))]
    coef = torch.linalg.lstsq(rows, 4 * y - 2).solution.tolist()
    with keyed.globals_keyed(seed, "init"):
        net = warm_mlp(coef=coef, intercept=0.1, periodic=8, hidden=[16], dropout=0.0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    for _ in range(40):
        loss = nn.functional.binary_cross_entropy_with_logits(net(rows).flatten(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def net() -> WarmMLP:
    return trained()


def itself(_: nn.Module, x: Tensor) -> Attribution:
    """Show the input, whatever the net."""
    return Attribution(x, x.sum(1))


def itself_signed(model: nn.Module, x: Tensor) -> Attribution:
    """Show the input, turned over where the net says no."""
    return Attribution(x * model(x).mean().sign(), x.sum(1))


@pytest.mark.parametrize("how", HOW)
def test_a_sound_method_passes_on_a_trained_net(net: WarmMLP, how: str) -> None:
    found = randomisation_test(net, X, HOW[how])
    assert found.passed
    assert found.similarity < found.chance < 0.5
    assert str(found).startswith("passes the randomisation test: similarity 0.")


@pytest.mark.parametrize("bad", [itself, itself_signed])
def test_a_method_that_shows_the_input_fails(net: WarmMLP, bad) -> None:
    found = randomisation_test(net, X, bad)
    assert not found.passed
    assert found.p <= found.alpha
    assert found.similarity > 0.9
    assert str(found).startswith("do not use: similarity 1.00 to 15 nets with random weights")


def test_a_method_that_shows_the_input_for_the_most_part_fails(net: WarmMLP) -> None:
    def blend(model: nn.Module, x: Tensor) -> Attribution:
        shares = integrated_gradients(model, x, steps=8).values
        return Attribution(x + 0.5 * shares, x.sum(1))

    assert not randomisation_test(net, X, blend).passed


def test_the_size_of_the_input_alone_is_no_failure(net: WarmMLP) -> None:
    shares = [integrated_gradients(trained(seed), X, steps=8).values.abs() for seed in (0, 1)]
    assert np.corrcoef(*(s.flatten().numpy() for s in shares))[0, 1] > 0.5  # any two are alike
    assert randomisation_test(net, X, HOW["integrated gradients"]).passed


def test_sound_methods_fail_about_as_seldom_as_alpha_says(net: WarmMLP) -> None:
    how = partial(integrated_gradients, steps=2)
    found = [
        randomisation_test(net, X[:15], how, draws=5, alpha=0.05, seed=seed) for seed in range(40)
    ]
    assert sum(not one.passed for one in found) <= 7  # 2 are meant; 8 by chance: 1 in 2,000


def test_weights_in_buffers_are_drawn_anew_and_named(net: WarmMLP) -> None:
    found = randomisation_test(net, X, HOW["integrated gradients"])
    assert {"coef", "intercept", "residual.0.frequency", "residual.1.0.weight"} <= set(
        found.randomised
    )
    assert found.kept == ()


def test_a_linear_part_left_in_its_buffer_makes_a_sound_method_seem_blind(net: WarmMLP) -> None:
    found = randomisation_test(net, X, HOW["integrated gradients"], keep=["coef", "intercept"])
    assert not found.passed
    assert found.kept == ("coef", "intercept")


def test_the_cascade_goes_from_the_output_down_to_all_of_the_net(net: WarmMLP) -> None:
    found = randomisation_test(net, X, HOW["integrated gradients"], cascade=True)
    names = [stage.module for stage in found.cascade]
    assert names == ["residual.1.2", "residual.1.0", "residual.0", "WarmMLP"]
    all_random = randomisation_test(net, X, HOW["integrated gradients"], draws=1)
    assert found.cascade[-1].similarity == all_random.similarity
    assert len({stage.similarity for stage in found.cascade}) == 4


def test_statistics_of_normalising_layers_are_kept() -> None:
    model = nn.Sequential(nn.Linear(COLUMNS, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    found = randomisation_test(model, X, HOW["integrated gradients"])
    assert set(found.kept) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert "1.weight" in found.randomised


def test_the_net_is_not_changed_and_the_seed_alone_decides(net: WarmMLP) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    def test(seed: int, state: int) -> float:
        with keyed.globals_keyed(state, "elsewhere"):
            return randomisation_test(net, X, HOW["Shapley values"], draws=4, seed=seed).similarity

    assert test(0, 1) == test(0, 2)
    assert test(0, 1) != test(5, 1)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_net_trained_on_noise_passes_as_its_shares_follow_its_weights() -> None:
    assert randomisation_test(trained(3, shuffled=True), X, HOW["integrated gradients"]).passed


def test_shares_of_nets_trained_on_shuffled_labels_are_told_apart(net: WarmMLP) -> None:
    how = HOW["integrated gradients"]
    shuffled = [how(trained(seed, shuffled=True), X) for seed in range(1, 6)]
    found = label_randomisation_test(how(net, X), shuffled)
    assert found.passed
    assert "5 nets trained on shuffled labels" in str(found)


def test_shares_that_are_as_large_for_shuffled_labels_fail(net: WarmMLP) -> None:
    same = itself(net, X)
    assert not label_randomisation_test(same, [same] * 3).passed


def test_the_verdict_goes_with_the_attribution(net: WarmMLP) -> None:
    verdict = randomisation_test(net, X, itself)
    assert str(verdict.on(itself(net, X))).endswith(str(verdict))


def test_the_p_value_is_that_of_all_sign_flips() -> None:
    # three columns, one row: products 9, 4, 1 of 14; |sum| is 1 in 2 of 8 flips
    row = np.array([[3.0, 2.0, 1.0]])
    found = compare(row, [row] * 1, alpha=0.3)
    assert found.similarity == pytest.approx(1)
    assert found.p == pytest.approx(1 / 4, abs=0.02)


def test_too_few_random_nets_are_refused(net: WarmMLP) -> None:
    with pytest.raises(ValueError, match=r"below alpha = 0.001 .*; 0 nets of 14 columns"):
        randomisation_test(net, X, HOW["integrated gradients"], draws=0)
    with pytest.raises(ValueError, match=r"1 nets of 3 columns reach 0.25 at best"):
        compare(X[:, :3], [X[:, :3]])


def test_a_net_without_weights_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tensors to draw anew.* found 0 to draw"):
        randomisation_test(nn.ReLU(), X, itself)


def test_a_tensor_that_is_not_there_cannot_be_kept(net: WarmMLP) -> None:
    with pytest.raises(ValueError, match=r"no tensor named \['coeff'\]"):
        randomisation_test(net, X, itself, keep=["coeff"])


def test_shares_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must not be 0 everywhere.* in 40 rows"):
        compare(0 * X, [X])


def test_shares_of_other_columns_are_refused() -> None:
    with pytest.raises(ValueError, match=r"same rows and columns.*\(40, 3\), \(40, 14\).*same pla"):
        compare(X, [X[:, :3]])
