"""Which columns of ``x`` are one thing to a reader: a value and "was missing", a category."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medkit.data.preprocessing import Preprocessing


@dataclass(frozen=True)
class Players:
    """Columns of ``x`` that are shown, hidden and credited together.

    A column and its "was missing" indicator say one thing between them: half of it in a bar of its
    own misleads, and a net that sees the one without the other sees a row that can't be. So do
    the levels of a category (`cp=1`, `cp=2`, ...): two at once, or none, can't be either.

    Attributes:
        names: Of the players, ``(P,)``.
        of: Player of each column of ``x``, int64 ``(F,)``.
    """

    names: tuple[str, ...]
    of: Tensor

    def __post_init__(self) -> None:
        named = sorted(set(self.of.flatten().tolist()))
        if self.of.ndim != 1 or named != list(range(len(self.names))):
            raise ValueError(
                f"each of the {len(self.names)} players must own at least one column, and each "
                f"column belong to one; found owners {named[:8]} in a tensor of shape "
                f"{tuple(self.of.shape)}. Pass Players(names, of) with of[f] the place of column "
                "f's player in names."
            )

    @classmethod
    def of_table(cls, preprocessing: Preprocessing | None) -> Players:
        """Take a table's columns, each with its indicator: ``dm.preprocessing``.

        The levels of a category are one player, named as its column: two 0/1 columns or more that
        are named alike before a "=", as a contract names them.

        Raises:
            ValueError: Where nothing was fitted yet.
        """
        if preprocessing is None:
            raise ValueError(
                "players are known once medians and scales are fitted or loaded, and neither was "
                "done. Call dm.setup(), or EHRDataModule.load_from_checkpoint(path)."
            )
        owner = _owners(preprocessing)
        names = tuple(dict.fromkeys(owner.values()))
        columns = [*preprocessing.features, *preprocessing.indicators]
        return cls(names, torch.tensor([names.index(owner[name]) for name in columns]))

    @classmethod
    def single(cls, columns: int) -> Players:
        """Take each column of ``x`` by itself, with its number for a name."""
        return cls(tuple(map(str, range(columns))), torch.arange(columns))

    def total(self, shares: Tensor) -> Tensor:
        """Add up the shares of each player's columns, ``(B, F)`` to ``(B, P)``."""
        empty = torch.zeros(len(shares), len(self.names), dtype=shares.dtype, device=shares.device)
        return empty.index_add(1, self.of.to(shares.device), shares)

    def keep(self, shown: Tensor) -> Tensor:
        """Return which columns of ``x`` are shown, from which players are: ``(C, P)`` bool."""
        return shown[:, self.of.to(shown.device)]


def _owners(preprocessing: Preprocessing) -> dict[str, str]:
    """Return feature -> the category whose level it is, else itself."""
    levels: dict[str, list[float]] = {}  # category -> medians of what may be its levels
    for name, median in zip(preprocessing.features, preprocessing.fill, strict=True):
        before, level, _ = name.partition("=")
        if before and level:
            levels.setdefault(before, []).append(median)
    categories = {
        name
        for name, medians in levels.items()
        if len(medians) > 1 and {*medians} <= {0.0, 0.5, 1.0} and name not in preprocessing.features
    }
    return {
        name: before if (before := name.partition("=")[0]) in categories else name
        for name in preprocessing.features
    }


def players_for(players: Players | None, x: Tensor) -> Players:
    """Return the players of a table's rows, each column by itself where none are named.

    Raises:
        ValueError: Where ``x`` is no table, or has other columns than the players own.
    """
    if x.ndim != 2 or len(x) == 0 or not x.is_floating_point():
        raise ValueError(
            "x must be a table of rows and features, (B, F), of floating-point numbers, got shape "
            f"{tuple(x.shape)} of {x.dtype}. For one row pass x[None]; images have functions of "
            "their own."
        )
    found = Players.single(x.shape[1]) if players is None else players
    if len(found.of) != x.shape[1]:
        raise ValueError(
            f"players must own the {x.shape[1]} columns of x, and own {len(found.of)}. Take them "
            "from the DataModule that made x: Players.of_table(dm.preprocessing)."
        )
    return found


def references(baseline: Tensor | None, x: Tensor) -> Tensor:
    """Return the reference rows, ``(K, F)``; one of zeros where none are given.

    Raises:
        ValueError: For rows of another width, none at all, or values that are not finite.
    """
    given = torch.zeros_like(x[:1]) if baseline is None else baseline
    rows = torch.atleast_2d(given.to(x))
    if rows.ndim != 2 or len(rows) == 0 or rows.shape[1] != x.shape[1]:
        raise ValueError(
            f"baseline must be a row (F,) or rows (K, F) of the {x.shape[1]} columns of x, got "
            f"shape {tuple(given.shape)}. Rows of the training part will do: "
            "dm.rows('train').x[:50]."
        )
    for name, values in (("x", x), ("baseline", rows)):
        if not torch.isfinite(values).all():
            raise ValueError(
                f"{name} must be finite; found {int((~torch.isfinite(values)).sum())} cells of "
                f"{tuple(values.shape)} that are not. Pass what the net sees: dm.apply(table).x "
                "has missing values filled in."
            )
    return rows
