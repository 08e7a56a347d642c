"""What attributions should have found: Shapley values of a rule that is known, gaps and all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from medkit.metrics.checks import Floats
from medkit.saliency.attribution import Attribution
from medkit.saliency.players import Players
from medkit.saliency.shapley import shapley_values
from medkit.synth.ehr import features_of, row_probability


def cell_shares(
    rule: Callable[[Floats], ArrayLike],
    values: ArrayLike,
    *,
    references: ArrayLike,
    names: Sequence[str],
    permutations: int = 200,
    seed: int = 0,
) -> Attribution:
    """Attribute what a rule says of rows with gaps to their cells: boosting, a score, the truth.

    A cell is a value or a gap, and one player either way.

    Args:
        rule: Rows ``(N, F)``, NaN where missing, to numbers ``(N,)``: log odds, say.
        values: Rows to explain, ``(B, F)``.
        references: Rows whose cells stand in for those not shown, ``(K, F)``.
        names: Of the columns.
        permutations: See :func:`shapley_values`.
        seed: Decides the orders.
    """
    rows, others = (_paired(np.asarray(table, np.float64)) for table in (values, references))

    def paired_rule(x: Tensor) -> Tensor:
        cells, gone = np.hsplit(x.numpy(), 2)
        return torch.from_numpy(np.array(rule(np.where(gone > 0, np.nan, cells)), np.float64))

    players = Players(tuple(names), torch.arange(len(names)).repeat(2))
    return shapley_values(
        paired_rule, rows, baseline=others, players=players, permutations=permutations, seed=seed
    )


def true_shares(
    values: ArrayLike,
    site: Sequence[str],
    *,
    references: ArrayLike,
    family: str = "additive",
    permutations: int = 200,
    seed: int = 1,
) -> Attribution:
    """Return the true attributions of rows of the made-up hospitals, ``(B, 20)`` [logit].

    That is how the log odds of P(y = 1 | the row), which no model can better, come about from the
    row's cells. A model that ranks well may still differ: two columns that tell the same story
    can stand in for each other. About 0.2 ms for each row, permutation and column.

    Args:
        values: Rows in the units of ``features_of(family)``, NaN where missing, ``(B, 20)``.
        site: "A", "B" or "C" of each row, at which it stays whatever cells it is given.
        references: Rows that models were explained with, too, ``(K, 20)``, of sites where the
            same columns can be missing.
        family: Of the hospitals.
        permutations: See :func:`shapley_values`.
        seed: Decides the orders; another one than the model's, or both err alike.
    """
    rows, sites = np.asarray(values, np.float64), np.asarray(site)
    names = [feature.name for feature in features_of(family)]
    count = len(rows)
    found = Attribution(torch.empty(count, len(names)), torch.empty(count), tuple(names))
    error = torch.zeros_like(found.values)
    for name in np.unique(sites).tolist():

        def log_odds(cells: Floats, name: str = name) -> Floats:
            prob = row_probability(cells, np.full(len(cells), name), family=family)
            return np.asarray(np.log(prob) - np.log1p(-prob))

        here = torch.from_numpy(np.flatnonzero(sites == name))
        part = cell_shares(
            log_odds,
            rows[here.numpy()],
            references=references,
            names=names,
            permutations=permutations,
            seed=seed,
        )
        found.values[here], found.delta[here] = part.values.float(), part.delta.float()
        if part.error is not None:
            error[here] = part.error.float()
    return Attribution(found.values, found.delta, found.names, error, verdict="the truth")


def _paired(values: Floats) -> Tensor:
    """Return values, 0 where missing, and whether they are missing: two columns a cell."""
    gone = np.isnan(values)
    return torch.from_numpy(np.hstack([np.where(gone, 0.0, values), gone]))
