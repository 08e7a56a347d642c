"""What was fitted, drawn or written down when: leaks that need no statistics."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medkit.data.leakage.findings import Finding
from medkit.data.preprocessing import Preprocessing, digest_ids
from medkit.data.splits import PARTS, Split
from medkit.data.tables import Table

Rows = NDArray[np.int64]

_ALIKE = 1e-6  # relative; another CPU may sum in another order

# Names of what is written down once the outcome is known; a name proves nothing, hence suspicious.
_AFTER = re.compile(
    r"(discharge|dischtime|disch_|outcome|death|deceased|died|mortality|cause_of_death|autopsy"
    r"|survival|expire|hospital_expire).*|.*(at|on)_(discharge|death|exit)|dod(_.*)?|los(_.*)?"
    r"|length_of_stay.*|(icd|drg|diagnosis|status)_(at_)?(discharge|exit).*"
)


def split_digests(table: Table, split: Split) -> dict[str, str]:
    """Return part -> digest of whose rows it holds, to be stored when the split is drawn."""
    return {part: digest_ids(table.patient[split.part(part)]) for part in PARTS}


def stored_split(table: Table, split: Split, stored: Mapping[str, str]) -> list[Finding]:
    """The split must be the one that was written down."""
    now = split_digests(table, split)
    changed = [part for part in PARTS if part in stored and stored[part] != now[part]]
    if not changed:
        return []
    return [
        Finding(
            "leak",
            "stored split",
            f"{' and '.join(changed)} hold other patients than those written down when the split "
            "was drawn: what was chosen on the old split has seen rows that are held out now.",
            {"parts": changed, "stored": {p: stored[p][:12] for p in changed}},
            "Use the stored split (same table, split_seed and fractions), or begin a new run.",
        )
    ]


def fitted(
    table: Table,
    split: Split,
    preprocessing: Preprocessing | None,
    transformers: Mapping[str, str],
) -> list[Finding]:
    """Every transformer must know the training rows and no others: by digest, and by its numbers.

    Args:
        table: The table.
        split: Its split.
        preprocessing: The kit's medians and scales; None: there are none.
        transformers: Name -> ``digest_ids`` of the rows it was fitted on, for anything else.
    """
    digests = dict(transformers)
    if preprocessing is not None:
        digests["medians and scales"] = preprocessing.fitted_on
    if not digests:
        return []
    train = digest_ids(table.patient[split.train])
    wrong = {name: digest for name, digest in digests.items() if digest != train}
    findings = [_fitted_elsewhere(table, split, *pair) for pair in wrong.items()]
    if preprocessing is not None and "medians and scales" not in wrong:
        findings += _fitted_numbers(table, split, preprocessing)
    return findings


def _fitted_elsewhere(table: Table, split: Split, name: str, digest: str) -> Finding:
    used = np.concatenate([split.train, split.val])
    candidates = {
        "all rows, before the split was drawn": np.arange(len(table.patient)),
        "training and validation rows together": used,
        "all rows of the split": np.concatenate([used, split.test]),
        "the validation rows": split.val,
        "the test rows": split.test,
    }
    whose = next(
        (words for words, rows in candidates.items() if digest_ids(table.patient[rows]) == digest),
        "other rows than those of this split's training part",
    )
    return Finding(
        "leak",
        "fitted on training rows",
        f"{name} were fitted on {whose} (digest {digest[:12]}).",
        {"transformer": name, "digest": digest, "whose": whose},
        "Draw the split first, then fit on table.values[split.train] alone.",
    )


def _fitted_numbers(table: Table, split: Split, fit: Preprocessing) -> list[Finding]:
    """A digest is what somebody wrote; the medians themselves say which rows they know."""
    betrayed, strange = [], []
    used = np.concatenate([split.train, split.val])
    everyone = np.concatenate([used, split.test])
    for index, name in enumerate(fit.features):
        column = table.values[:, index].astype(np.float64)
        of_train, of_used, of_all = (_centers(column[r]) for r in (split.train, used, everyone))
        for stored in (fit.fill[index], fit.center[index]):
            if fit.scale[index] == 0 or any(_same(stored, center) for center in of_train):
                continue
            if any(_same(stored, center) for center in (*of_used, *of_all)):
                betrayed.append(name)
                break
        if fit.scale[index] != 0 and not any(_same(fit.fill[index], c) for c in of_train[:1]):
            strange.append(name)
    if betrayed:
        return [
            Finding(
                "leak",
                "fitted on training rows",
                f"medians or means of {len(betrayed)} columns ({', '.join(betrayed[:3])}) are "
                "those of held-out rows too, although their digest names the training rows.",
                {"columns": betrayed},
                "Fit on table.values[split.train], and take the digest of the very rows fitted on.",
            )
        ]
    if strange:
        return [
            Finding(
                "suspicious",
                "fitted on training rows",
                f"the fill values of {len(strange)} columns ({', '.join(strange[:3])}) are not the "
                "medians of the training rows that their digest names.",
                {"columns": strange},
                "Fit again on table.values[split.train]; was the table changed after the fit?",
            )
        ]
    return []


def _centers(column: NDArray[np.float64]) -> tuple[float, ...]:
    there = column[~np.isnan(column)]
    return (float(np.median(there)), float(there.mean())) if len(there) else ()


def _same(a: float, b: float) -> bool:
    return abs(a - b) <= _ALIKE * max(abs(a), abs(b), 1e-12)


def sampler(split: Split, rows: Rows) -> list[Finding]:
    """What is drawn for training must be training rows."""
    outside = rows[~np.isin(rows, split.train)]
    if len(outside) == 0:
        return []
    counts = {part: int(np.isin(outside, split.part(part)).sum()) for part in PARTS[1:]}
    return [
        Finding(
            "leak",
            "sampler",
            f"{len(outside)} of {len(rows)} draws for training are not training rows: "
            f"{counts['val']} of validation, {counts['test']} of test (first: row "
            f"{outside[0] + 1} below the header).",
            {"draws": len(rows), "outside": len(outside), **counts},
            "Weigh and draw among split.train only, after the split.",
        )
    ]


def recorded_after(features: Sequence[str], after: Sequence[str]) -> list[Finding]:
    """Features that are written down after the outcome: by the contract, or by their names."""
    findings = []
    sure = [name for name in features if name in set(after)]
    if sure:
        findings.append(
            Finding(
                "leak",
                "recorded after the outcome",
                f"{', '.join(sure[:5])} {'is a feature' if len(sure) == 1 else 'are features'}, "
                "and the contract says that it is recorded after the outcome.",
                {"columns": sure},
                f"Leave it out: ignore={sure}.",
            )
        )
    names = [n for n in features if n not in sure and _AFTER.fullmatch(_snake(n))]
    if names:
        findings.append(
            Finding(
                "suspicious",
                "recorded after the outcome",
                f"{', '.join(names[:5])}: the name speaks of the end of the stay.",
                {"columns": names},
                f"If it is not known when the prediction is made, leave it out: ignore={names}; "
                "if it is, say so: `recorded: before` in the contract (known= of audit).",
            )
        )
    return findings


def _snake(name: str) -> str:
    """``DischargeICD code`` -> ``discharge_icd_code``."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return re.sub(r"\W+", "_", spaced).strip("_").lower()
