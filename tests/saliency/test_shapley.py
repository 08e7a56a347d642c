from __future__ import annotations

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from medkit import keyed
from medkit.data.contract.schema import Column, Contract
from medkit.data.preprocessing import fit
from medkit.models.nets import mlp
from medkit.saliency.attribution import integrated_gradients
from medkit.saliency.players import Players
from medkit.saliency.shapley import shapley_values

GLOVES = torch.tensor([[1.0, 1.0, 1.0]])


def gloves(x: Tensor) -> Tensor:
    """Player 0 has a left glove, 1 and 2 a right one each; a pair is worth 1."""
    return x[:, 0] * torch.maximum(x[:, 1], x[:, 2])


def rows(count: int, columns: int, place: str = "rows") -> Tensor:
    return torch.randn(count, columns, generator=keyed.torch_generator(0, place))


def net(inputs: int) -> nn.Module:
    with keyed.globals_keyed(0, "net"):
        return mlp(inputs=inputs, hidden=[16], dropout=0.5)


def by_definition(model: nn.Module, x: Tensor, baseline: Tensor) -> Tensor:
    """All orders, one row and one baseline at a time."""
    count = x.shape[1]
    values = torch.zeros_like(x)
    orders = list(permutations(range(count)))
    for index, row in enumerate(x):
        for reference in baseline:
            for order in orders:
                now = reference.clone()
                for player in order:
                    before = model(now[None]).item()
                    now[player] = row[player]
                    values[index, player] += model(now[None]).item() - before
    return values / (len(orders) * len(baseline))


def test_the_glove_game_is_split_as_worked_by_hand() -> None:
    # orders 012 021: 1 2 | 102: 0 gains 1 | 120 210: 0 gains 1 | 201: 0 gains 1; 0 first: 1 or 2
    found = shapley_values(gloves, GLOVES)
    torch.testing.assert_close(found.values, torch.tensor([[4 / 6, 1 / 6, 1 / 6]]))
    assert found.error is None


def test_a_linear_model_gives_weight_times_distance_from_the_mean() -> None:
    model, x, background = nn.Linear(30, 1), rows(5, 30), rows(8, 30, "background")
    found = shapley_values(model, x, baseline=background, permutations=16)
    want = model.weight.detach() * (x - background.mean(0))
    torch.testing.assert_close(found.values, want, atol=1e-5, rtol=1e-4)
    assert found.error is not None
    assert found.error.max() > 0.01  # one pair of orders a reference row: their choice is counted


def test_with_two_pairs_for_each_reference_row_their_choice_leaves_no_error() -> None:
    model, x, background = nn.Linear(30, 1), rows(5, 30), rows(8, 30, "background")
    found = shapley_values(model, x, baseline=background, permutations=34)
    assert found.error is not None
    assert found.error.max() < 1e-5


def test_a_linear_model_leaves_no_error_from_one_reference_row() -> None:
    model, x = nn.Linear(30, 1), rows(5, 30)
    found = shapley_values(model, x, permutations=4)
    torch.testing.assert_close(found.values, model.weight.detach() * x, atol=1e-5, rtol=1e-4)
    assert found.error is not None
    assert found.error.max() < 1e-5


def test_all_coalitions_give_what_all_orders_give() -> None:
    model, x, background = net(5).eval(), rows(3, 5), rows(2, 5, "background")
    found = shapley_values(model, x, baseline=background)
    torch.testing.assert_close(found.values, by_definition(model, x, background))
    assert found.error is None
    assert found.delta.abs().max() < 1e-5


def test_drawn_orders_come_within_their_standard_error_of_all_coalitions() -> None:
    model, x = net(9), rows(40, 9)
    exact = shapley_values(model, x, permutations=200)
    drawn = shapley_values(model, x, permutations=40, seed=1)
    assert exact.error is None
    assert drawn.error is not None
    off = ((drawn.values - exact.values) / drawn.error).abs()
    assert 0.5 < off.median() < 0.9  # 0.67 of a normal
    assert (off > 4).float().mean() < 0.02
    assert drawn.delta.abs().max() < 1e-4


def test_captum_s_own_sum_over_all_orders_agrees_on_groups() -> None:
    from captum.attr import ShapleyValues

    model, x, groups = net(8).eval(), rows(3, 8), torch.tensor([0, 1, 2, 3, 4, 1, 2, 3])
    found = shapley_values(model, x, players=Players(tuple("abcde"), groups))
    want = ShapleyValues(model).attribute(x, feature_mask=groups[None])
    assert found.error is None
    torch.testing.assert_close(found.values, want.detach()[:, 0, :5])


def test_a_value_and_its_indicator_are_one_player() -> None:
    model, x = nn.Linear(4, 1), rows(3, 4)
    players = Players(("age", "bnp"), torch.tensor([0, 1, 1, 0]))
    each = (model.weight * x).detach()
    want = torch.stack([each[:, 0] + each[:, 3], each[:, 1] + each[:, 2]], dim=1)
    for how in (shapley_values, integrated_gradients):
        found = how(model, x, players=players)
        torch.testing.assert_close(found.values, want)
        assert found.names == ("age", "bnp")


def test_players_are_never_seen_in_half() -> None:
    seen: list[Tensor] = []

    def watched(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return x.sum(1)

    players = Players(tuple(map(str, range(12))), torch.arange(12).repeat(2))
    shapley_values(watched, torch.ones(2, 24), players=players, permutations=8)
    asked = torch.cat(seen)
    assert torch.equal(asked[:, :12], asked[:, 12:])
    assert len(asked.unique(dim=0)) > 12


def test_the_seed_decides_and_the_global_generators_do_not() -> None:
    model, x = net(20), rows(4, 20)

    def values(seed: int, state: int) -> Tensor:
        with keyed.globals_keyed(state, "elsewhere"):
            before = torch.get_rng_state()
            found = shapley_values(model, x, permutations=4, seed=seed).values
            assert torch.equal(torch.get_rng_state(), before)
        return found

    assert torch.equal(values(0, 1), values(0, 2))
    assert not torch.equal(values(0, 1), values(3, 1))


def test_dropout_is_off_and_each_mode_is_put_back() -> None:
    model = net(4).train()
    model[0].eval()
    one, other = (shapley_values(model, rows(2, 4)).values for _ in range(2))
    assert torch.equal(one, other)
    assert (model.training, model[0].training, model[2].training) == (True, False, True)


def test_integrated_gradients_average_over_reference_rows() -> None:
    model, x, background = net(6), rows(3, 6), rows(4, 6, "background")
    found = integrated_gradients(model, x, baseline=background)
    each = [integrated_gradients(model, x, baseline=row).values for row in background]
    torch.testing.assert_close(found.values, torch.stack(each).mean(0))


def test_boosting_is_explained_by_its_answers() -> None:
    from medkit.models.baseline import fit_boosting

    x = rows(300, 3)
    y = (x[:, 0] > 0).long()
    boosting = fit_boosting(x, y)
    found = shapley_values(lambda part: torch.from_numpy(boosting.prob(part)), x[:20])
    assert found.importance.argmax() == 0
    assert torch.equal(found.values[:, 0] < -0.5, x[:20, 0] < 0)


@pytest.mark.parametrize("permutations", [0, 3])
def test_an_odd_number_of_orders_is_refused(permutations: int) -> None:
    with pytest.raises(ValueError, match=rf"an even number, 2 or more, got {permutations}: .* 200"):
        shapley_values(gloves, GLOVES, permutations=permutations)


@pytest.mark.parametrize("how", [shapley_values, integrated_gradients])
def test_a_model_that_says_two_numbers_a_row_is_refused(how) -> None:
    with pytest.raises(ValueError, match=r"one number a row.* it said \d+ of \d+ rows.*lambda"):
        how(nn.Linear(3, 2), GLOVES)


@pytest.mark.parametrize("how", [shapley_values, integrated_gradients])
def test_rows_that_do_not_fit_are_refused(how: object) -> None:
    model = nn.Linear(3, 1)
    with pytest.raises(ValueError, match=r"\(B, F\), .*got shape \(3,\).*x\[None\]"):
        how(model, torch.ones(3))
    with pytest.raises(ValueError, match=r"the 3 columns of x, and own 2\. Take them"):
        how(model, GLOVES, players=Players.single(2))
    with pytest.raises(
        ValueError, match=r"rows \(K, F\) of the 3 columns.*shape \(5, 2\).*dm\.rows"
    ):
        how(model, GLOVES, baseline=torch.ones(5, 2))
    with pytest.raises(
        ValueError, match=r"x must be finite; found 3 cells .*missing values filled"
    ):
        how(model, GLOVES * torch.nan)
    with pytest.raises(ValueError, match=r"baseline must be finite; found 3 cells"):
        how(model, GLOVES, baseline=GLOVES / 0)


@pytest.mark.parametrize("of", [[0, 0, 2], [0, 1], [[0, 1, 2]]])
def test_a_player_without_a_column_is_refused(of: list) -> None:
    with pytest.raises(ValueError, match=r"each of the 3 players must own at least one column"):
        Players(("a", "b", "c"), torch.tensor(of))


def test_a_category_with_its_levels_and_indicators_is_one_player() -> None:
    frame = pd.DataFrame(
        {"cp": [1, 2, 3, None] * 5, "sex": [0, 1] * 10, "a=b": range(20), "a=c": range(20)}
    )
    contract = Contract(
        {"cp": Column("category", levels=[1, 2, 3]), "sex": Column("binary")}
        | {name: Column() for name in ("a=b", "a=c")}
    )
    values = contract.apply(frame)[0]
    names = list(values)
    fitted = fit(values.to_numpy(np.float32), names, fitted_on="")
    assert fitted.names[-3:] == ["cp=1 missing", "cp=2 missing", "cp=3 missing"]
    players = Players.of_table(fitted)
    assert players.names == ("cp", "sex", "a=b", "a=c")
    assert players.of.tolist() == [0, 0, 0, 1, 2, 3, 0, 0, 0]


def test_players_of_a_table_that_was_not_read_are_refused() -> None:
    with pytest.raises(ValueError, match=r"once medians .* neither was done\. Call dm\.setup\(\)"):
        Players.of_table(None)


def test_importance_is_the_mean_absolute_share() -> None:
    found = shapley_values(nn.Linear(2, 1), torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
    np.testing.assert_allclose(found.importance, found.values.abs().mean(0))
    assert "not tested" in str(found)
