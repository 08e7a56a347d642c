"""Attributions of a fold ensemble: each member in its own medians and scales, then the mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from medkit.models.ensemble import FoldEnsemble, Member
from medkit.saliency.attribution import Attribution, integrated_gradients
from medkit.saliency.players import Players


class MemberNet(nn.Module):
    """All that decides a member's log odds, as one net: ``(B, F)`` to ``(B,)``.

    That is the net, the shift of balanced draws and, where the ensemble weighs the net against
    logistic regression, that regression too. It sits in buffers here: a test that draws a net's
    weights anew must reach all that was learnt.
    """

    coef: Tensor
    intercept: Tensor

    def __init__(self, member: Member, *, weight: float = 1.0) -> None:
        super().__init__()
        self.net = member.model.net
        self.shift = member.model.logit_shift
        self.weight = weight
        device = member.model.device
        start = member.dm.baseline if weight != 1 else None
        coef = torch.tensor(start.coef if start else (), dtype=torch.float32, device=device)
        self.register_buffer("coef", coef)
        level = torch.tensor(start.intercept if start else 0.0, device=device)
        self.register_buffer("intercept", level.float())

    def forward(self, x: Tensor) -> Tensor:
        """Return the log odds that the ensemble takes the member to say."""
        logits = self.net(x).reshape(len(x)) + self.shift
        if self.weight == 1:
            return logits
        return torch.lerp(x @ self.coef + self.intercept, logits, self.weight)


class EnsembleNet(nn.Module):
    """The members of a fold ensemble as nets: what attributions and their test are made of.

    It holds no table (a copy for each random net would be costly): see :func:`member_rows`.
    """

    def __init__(self, ensemble: FoldEnsemble) -> None:
        super().__init__()
        self.members = nn.ModuleList(MemberNet(m, weight=ensemble.weight) for m in ensemble.members)
        self.players = [Players.of_table(m.dm.preprocessing) for m in ensemble.members]
        self.eval()

    def forward(self, xs: Sequence[Tensor]) -> Tensor:
        """Return the mean of the members' log odds, ``(B,)``."""
        said = [net(x) for net, x in zip(self.members, xs, strict=True)]
        return torch.stack(said).mean(0)


def member_rows(ensemble: FoldEnsemble, table: str | Path | pd.DataFrame) -> list[Tensor]:
    """Return the rows of a table as each member sees them, ``(B, F)`` each, on its device."""
    return [m.dm.apply(table).x.to(m.model.device) for m in ensemble.members]


def attribute_members(
    net: EnsembleNet,
    xs: Sequence[Tensor],
    *,
    how: Callable[..., Attribution] = integrated_gradients,
    baselines: Sequence[Tensor] | None = None,
) -> Attribution:
    """Attribute the mean of the members' log odds to the table's columns.

    A member has medians, scales and indicators of its own, so the same column of ``x`` is not the
    same thing to two of them. Each is explained in its own ``x``, a value and its indicator as
    one player, and shares are averaged by the table's columns. (The ensemble averages
    probabilities; shares are of the mean of their log odds, which ranks rows nearly alike.)

    Args:
        net: ``EnsembleNet(ensemble)``.
        xs: The rows: ``member_rows(ensemble, table)``.
        how: ``integrated_gradients`` or ``shapley_values``, with settings by ``partial``.
        baselines: Reference rows, such as ``member_rows(ensemble, training_table.head(20))``.
            None: zeros, each member's median row.

    Raises:
        ValueError: Where there is not one ``x`` per member.
    """
    if len(xs) != len(net.members) or (baselines is not None and len(baselines) != len(xs)):
        raise ValueError(
            f"each of the {len(net.members)} members needs its own x and baseline, got {len(xs)} "
            f"and {'none' if baselines is None else len(baselines)}. Make both by "
            "member_rows(ensemble, table)."
        )
    found = [
        how(
            member,
            x,
            players=players,
            baseline=None if baselines is None else baselines[index],
        )
        for index, (member, x, players) in enumerate(zip(net.members, xs, net.players, strict=True))
    ]
    values = torch.stack([one.values for one in found])
    errors = [one.error for one in found if one.error is not None]
    return Attribution(
        values=values.mean(0),
        delta=torch.stack([one.delta for one in found]).mean(0),
        names=found[0].names,
        # the same orders were drawn for every member, so their errors don't average out
        error=torch.stack(errors).mean(0) if errors else None,
        members=values,
    )
