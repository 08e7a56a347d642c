"""Whether a data contract and a table can belong together at all."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from medkit.data.contract.breaches import Broken

if TYPE_CHECKING:
    from medkit.data.contract.repair import Cells
    from medkit.data.contract.schema import Column, Contract
    from medkit.data.tables import TableSpec

ENOUGH = 10  # cells; fewer say nothing about a whole site


def require_columns(contract: Contract, frame: pd.DataFrame, *, new: bool) -> None:
    """Refuse a table without rows, or without the columns that the contract names, once each."""
    found = [str(name) for name in frame.columns]
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        raise ValueError(
            f"a table must name each column once, and {twice} stand there more than once. "
            "Rename or remove one of each: which of them the contract means can't be guessed."
        )
    if len(frame) == 0:
        raise ValueError(
            "a table must have at least one row below its column names, and it has none. "
            "Was the export cut off, or its filter too narrow?"
        )
    needed = [name for name, rule in contract.columns.items() if rule.is_feature]
    roles = contract.roles
    needed += [] if new else list(roles.values())
    missing = [name for name in needed if name not in found]
    if missing:
        close = difflib.get_close_matches(missing[0], found, n=1)
        raise ValueError(
            f"the table must have the contract's columns, and {missing} are not among {found}. "
            + (f"Did you mean {close[0]!r}? " if close else "")
            + "Rename them, or take them out of the contract."
        )


def require_site(contract: Contract, frame: pd.DataFrame, site: str | None) -> None:
    """Refuse rows that do not say whose they are, where units or codes are a site's own."""
    there = site is not None or (contract.site is not None and contract.site in frame)
    own = [n for n, rule in contract.columns.items() if rule.units_at or rule.missing_at]
    if own and not there:
        raise ValueError(
            f"units and codes of {own} differ between sites, so each row must say whose it is; "
            f"the site column is {contract.site!r} and the table has none. Add the column, or pass "
            "site= where all rows are of one."
        )


def require_same_contract(digest: str, contract: Contract | None) -> None:
    """Refuse to go on from a checkpoint under another contract than its own; "" is none."""
    now = "" if contract is None else contract.digest
    if digest != now:
        raise ValueError(
            "a checkpoint goes on with the data contract it was trained under; its digest is "
            f"{digest[:12] or 'none'}, this one's {now[:12] or 'none'}. Take that contract (it is "
            "in the checkpoint's hyper_parameters), or begin a new run."
        )


def agreed_features(
    contract: Contract, spec: TableSpec, features: Sequence[str] | None, where: str
) -> list[str]:
    """Return the features to read, once contract and arguments say the same.

    Raises:
        ValueError: For another role, codes beside the contract's, a feature it does not offer.
    """
    named = {"target": spec.target, "patient": spec.patient, "site": spec.site, "split": spec.split}
    for role, name in {**named, "target_above": spec.target_above}.items():
        if name != getattr(contract, role):
            raise ValueError(
                f"{where}: contract and arguments must name the same {role}; the contract says "
                f"{getattr(contract, role)!r}, the arguments {name!r}. Correct one of the two."
            )
    if spec.missing_codes:
        raise ValueError(
            f"{where}: with a contract the codes that mean missing stand in it alone; "
            f"missing_codes={dict(spec.missing_codes)} was given too. Move them there: missing, or "
            "missing_at for one site."
        )
    offered = [name for name in contract.features if name not in spec.ignore]
    for name in features or ():
        if name in offered:
            continue
        rule = contract.columns.get(name)
        why = "is not in the contract"
        if rule is not None and rule.recorded == "after":
            why = "was recorded after the outcome, says the contract"
        elif rule is not None:
            why = f"is of kind {rule.kind!r} there"
        raise ValueError(
            f"{where}: a feature must be one that the contract offers, and {name!r} {why}. "
            f"It offers {offered}."
        )
    return offered if features is None else list(features)


def require_agreement(contract: Contract, cells: Cells) -> None:
    """Refuse a column most of whose cells at a site break the contract."""
    for site, filled in cells.filled.items():
        found = [b for b in cells.broken if b.site == site and not b.expected]
        count = sum(b.count for b in found)
        if filled < ENOUGH or count <= contract.tolerance * filled:
            continue
        worst = max(found, key=lambda b: b.count)
        median = cells.median.get(site, np.nan)
        at = f" at site {site!r}" if site else ""
        raise ValueError(
            f"the contract and the data contradict each other: {cells.name!r}{at} breaks it in "
            f"{count} of {filled} cells ({worst.what}: {worst.count}, first in row "
            f"{worst.rows[0] + 1} below the header"
            + (f"; their median as written is {median:.4g}" if np.isfinite(median) else "")
            + "). "
            + _advice(cells.rule, worst, site)
        )


def _advice(rule: Column, worst: Broken, site: str) -> str:
    if rule.kind != "number" or worst.what.startswith("not a number"):
        return "Correct its kind, its levels or its codes for missing in the contract."
    where = f"units_at: {{{site}: ...}}" if site else "unit"
    return (
        f"Is that in another unit ({where})? Else widen low and high; tolerance: 1 would let it "
        "pass."
    )
