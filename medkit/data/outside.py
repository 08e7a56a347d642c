"""Why a row of a new table is outside of what a model was trained on.

By the data contract where there is one, and by what the training rows reached and lacked. A table
is gone through twice: what a site's rows are like together (:meth:`Outside.see`) is known before
each row is judged (:meth:`Outside.reasons`), and neither needs the whole table at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medkit.data.broken_cells import Breaches
from medkit.data.contract.agreement import ENOUGH
from medkit.data.contract.schema import Contract, feature_names
from medkit.data.preprocessing import Preprocessing
from medkit.data.tables import Table

Mask = NDArray[np.bool_]
Reason = tuple[str, Mask, Sequence[str] | None]  # what is counted; rows; their own words for it
FAR = 2.5  # training scales; hospitals differ by less, units by more
_NEW = "\n"  # no site is named so: all sites that training did not have


@dataclass
class _Together:
    """What the rows of one site are like: ``(F,)`` counts of cells."""

    rows: int
    filled: NDArray[np.int64]
    above: NDArray[np.int64]
    below: NDArray[np.int64]


@dataclass
class Outside:
    """Judge the rows of a new table by what training saw.

    Args:
        contract: The stored data contract of the columns that the net sees, or None.
        preprocessing: The stored medians and scales.
        sites: Sites of the table that was trained on; empty: it had none.
        held_out: Its site that was kept for the external test, or None.

    Attributes:
        rows: How many were seen.
        new_sites: Site -> rows, for sites without a row in training.
        reasons_of: Reason -> rows that have it.
        flagged: Rows with a reason.
    """

    contract: Contract | None
    preprocessing: Preprocessing
    sites: Sequence[str] = ()
    held_out: str | None = None
    rows: int = 0
    new_sites: Counter[str] = field(default_factory=Counter)
    reasons_of: Counter[str] = field(default_factory=Counter)
    flagged: int = 0
    _seen: dict[str, _Together] = field(default_factory=dict)

    def __post_init__(self) -> None:
        agreed = () if self.contract is None else self.contract.sites
        self.known = set(agreed) or set(self.sites) - {""}
        self.trained = set(self.sites) - {"", self.held_out}
        self._breaches = None if self.contract is None else Breaches(self.contract)

    def see(self, table: Table) -> None:
        """Count what the rows of each site are like together.

        Raises:
            ValueError: At a site whose units nobody has said.
        """
        self.rows += len(table.y)
        stored = self.preprocessing
        reach = FAR * np.array(stored.scale)
        above, below = np.array(stored.center) + reach, np.array(stored.center) - reach
        if stored.low:
            above, below = np.minimum(above, stored.high), np.maximum(below, stored.low)
        for site, count in Counter(table.site.tolist()).items():
            if self.trained and site not in self.trained:
                self.new_sites[site] += count
            self._require_units(site)
        for key, rows in self._groups(table):
            values = table.values[rows]
            here = self._seen.setdefault(key, _Together(0, *np.zeros((3, values.shape[1]), int)))
            here.rows += len(rows)
            here.filled += (~np.isnan(values)).sum(axis=0)
            here.above += (values > above).sum(axis=0)  # NaN is neither
            here.below += (values < below).sum(axis=0)

    def reasons(self, frame: pd.DataFrame, table: Table) -> NDArray[np.object_]:
        """Return ``(N,)`` texts: why a row is outside, "" where it is not; count them.

        Args:
            frame: The rows as they were read.
            table: The same, read by the stored contract and columns.
        """
        texts = np.full(len(table.y), "", object)
        of_sites: Iterator[Reason] = ((why, rows, None) for why, rows in self._of_sites(table))
        for reason, mask, words in (*self._of_cells(frame, table), *of_sites):
            if count := int(mask.sum()):
                pairs = zip(texts[mask], words or [reason] * count, strict=True)
                texts[mask] = [f"{text}; {word}" if text else word for text, word in pairs]
                self.reasons_of[reason] += count
        self.flagged += int((texts != "").sum())
        return texts

    def why(self, reason: str) -> str:
        """Return what broke the contract, such as ": 3 above 45 degC"; "" for other reasons."""
        return "" if self._breaches is None else self._breaches.why(reason)

    def absent_at_trained_sites(self) -> dict[str, list[str]]:
        """Return training site -> columns without one value there: perhaps its habit."""
        return {
            site: absent
            for site, here in sorted(self._seen.items())
            if site in self.trained and (absent := self._absent(here))
        }

    def _of_cells(self, frame: pd.DataFrame, table: Table) -> Iterator[Reason]:
        stored = self.preprocessing
        broken = np.zeros(table.values.shape, np.bool_)  # said once: not as missing, too
        column_of: dict[str, str] = {}
        if self._breaches is not None:
            for name, rule in self._breaches.contract.columns.items():
                column_of |= dict.fromkeys(feature_names(name, rule), name)
            for column, reason, rows, words in self._breaches.of(frame, table.site):
                mine = [column_of.get(name) == column for name in stored.features]
                broken |= rows[:, None] & np.array(mine)
                yield reason, rows, words
        gone = np.isnan(table.values) & ~broken
        missing: dict[str, Mask] = {}
        for index, name in enumerate(stored.features):
            if not stored.low or stored.scale[index] == 0:  # nothing known, or not used
                continue
            width = stored.high[index] - stored.low[index]
            values = table.values[:, index]
            far = (values > stored.high[index] + width) | (values < stored.low[index] - width)
            yield f"{name} far from all of training", far & ~broken[:, index], None
            if stored.missing[index] == 0:  # the levels of a category are missing together
                column = column_of.get(name, name)
                missing[column] = missing.get(column, False) | gone[:, index]
        for column, mask in missing.items():
            yield f"{column} missing, never so in training", mask, None
        share = gone.mean(axis=1) if gone.shape[1] else np.zeros(len(gone))
        yield "more missing than in any row of training", share > stored.most_missing + 1e-9, None

    def _of_sites(self, table: Table) -> Iterator[tuple[str, Mask]]:
        whose = "in the contract" if self.contract and self.contract.sites else "in training"
        for key, rows in self._groups(table):
            mask = np.zeros(len(table.y), np.bool_)
            mask[rows] = True
            if key == _NEW and self.known:
                yield f"site not {whose}", mask
            for name, low in self._far(self._seen[key]):
                yield f"{name} of the whole site far {'below' if low else 'above'} training", mask
            if key not in self.trained:
                for name in self._absent(self._seen[key]):
                    yield f"{name} missing in the whole site", mask

    def _far(self, here: _Together) -> Iterator[tuple[str, bool]]:
        """Yield columns whose median lies where hardly a training row does: other units?"""
        for index, name in enumerate(self.preprocessing.features):
            enough = here.filled[index] >= ENOUGH and self.preprocessing.scale[index] > 0
            for count, low in ((here.below, True), (here.above, False)):
                if enough and 2 * count[index] > here.filled[index]:
                    yield name, low

    def _absent(self, here: _Together) -> list[str]:
        stored = self.preprocessing
        return [
            name
            for index, name in enumerate(stored.features)
            if here.rows >= ENOUGH and here.filled[index] == 0 and stored.scale[index] > 0
        ]

    def _require_units(self, site: str) -> None:
        if self.contract is None or not site:
            return
        rules = self.contract.columns.items()
        own = [name for name, rule in rules if rule.is_feature and rule.units_at]
        said = self.known.union(self.sites, *(rule.units_at for _, rule in rules))
        if own and site not in said:
            raise ValueError(
                f"units must be known for each site, and the contract has sites {sorted(said)}; "
                f"found {site!r}, and {own} are in other units from site to site. Add the site to "
                "a copy of the contract (sites, and units_at where its units differ) and pass it "
                "with --contract."
            )

    def _groups(self, table: Table) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """Yield the rows of each known site, and those of all others together."""
        names, number = np.unique(table.site, return_inverse=True)
        keys = [name if not name or name in self.known else _NEW for name in names.tolist()]
        group = np.array([keys.index(key) for key in keys])[number] if len(set(keys)) > 1 else None
        for key in dict.fromkeys(keys):
            whole = np.arange(len(table.y))
            yield key, whole if group is None else np.flatnonzero(group == keys.index(key))


def extended(stored: Contract, given: Contract) -> Contract:
    """Return ``given``, a stored contract with further sites; any other change is refused.

    Raises:
        ValueError: Where it says something else of columns, or of sites that were there.
    """
    old = set(stored.sites)
    for rule in stored.columns.values():
        old |= {*rule.units_at, *rule.missing_at}

    def plain(contract: Contract) -> dict[str, Any]:
        content = contract.to_mapping()
        content["sites"] = sorted(set(contract.sites) & old)
        for rule in content["columns"].values():
            for key in ("units_at", "missing_at"):
                rule[key] = {s: v for s, v in rule.get(key, {}).items() if s in old}
        return content

    was, now = plain(stored), plain(given)
    if was != now:
        other = [n for n, rule in was["columns"].items() if rule != now["columns"].get(n)]
        other += [n for n in now["columns"] if n not in was["columns"]]
        raise ValueError(
            "a contract for new sites must be the stored one with sites, units_at and missing_at "
            f"added; it differs in {other or [k for k in was if was[k] != now.get(k)]}. The net "
            "knows the columns as they were: change nothing else, or train anew."
        )
    return given
