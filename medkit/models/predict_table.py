"""What a table to predict must have: the columns that were trained on, as agreed."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

import pandas as pd

from medkit.data.contract.schema import Contract, feature_names
from medkit.data.outside import extended
from medkit.data.table_module import TableDataModule


def require_columns(frame: pd.DataFrame, dm: TableDataModule, contract: Contract | None) -> None:
    """Refuse a table without a column that the model was trained on, or whose rows have no site.

    Args:
        frame: Its first rows.
        dm: The stored DataModule.
        contract: What is agreed on the columns that the net sees, or None.

    Raises:
        ValueError: For such a table.
    """
    found = [str(name) for name in frame.columns]
    needed = () if dm.preprocessing is None else dm.preprocessing.features
    rules = {} if contract is None else contract.columns
    names = (
        needed if contract is None else [name for name, rule in rules.items() if rule.is_feature]
    )
    if missing := [name for name in names if name not in found]:
        close = difflib.get_close_matches(missing[0], found, n=1)
        raise ValueError(
            f"the table must have the columns that the model was trained on, and {missing} are not "
            f"among {found}. "
            + (f"Is {close[0]!r} {missing[0]!r}? Rename it. Else add" if close else "Add")
            + " them, empty where not measured."
        )
    own = [name for name, rule in rules.items() if rule.units_at or rule.missing_at]
    if contract is not None and own and contract.site not in found:
        raise ValueError(
            f"each row must say whose it is, as units and codes of {own} differ between sites, and "
            f"the table has no column {contract.site!r}. Add it, with one of "
            f"{list(contract.sites)} in each row, or a new site and its units by --contract FILE."
        )


def contract_of(dm: TableDataModule, given: str | Path | None) -> Contract | None:
    """Return what is agreed on the columns that the net sees; others are not asked for."""
    agreed = dm.contract
    if given is not None and agreed is None:
        raise ValueError(
            "--contract adds sites to the data contract that a run was trained under, and this run "
            "has none. Leave it out, and bring the table into the units of training yourself."
        )
    if agreed is None or dm.preprocessing is None:
        return None
    if given is not None:
        agreed = extended(agreed, Contract.of(given))
    seen = set(dm.preprocessing.features)
    columns = {n: rule for n, rule in agreed.columns.items() if seen & {*feature_names(n, rule)}}
    return replace(agreed, columns=columns)
