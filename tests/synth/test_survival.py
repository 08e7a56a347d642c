from __future__ import annotations

import ast
import csv
import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medkit import synth
from medkit.data.cox import fit_cox
from medkit.data.hazard import breslow
from medkit.synth.survival import (
    COLUMNS,
    FOLLOW_UP_DAYS,
    Followed,
    dictionary_csv,
    main,
    make_survival,
)

SAMPLES = Path(__file__).parents[2] / "data_samples" / "survival"

# Each is one correctly rounded IEEE operation, a comparison, or about whole numbers and places.
EXACT = {
    "argsort", "array", "bool_", "float64", "floor", "full", "int64", "maximum", "minimum",
    "repeat", "str_", "where",
}  # fmt: skip


@pytest.fixture(scope="module")
def many() -> Followed:
    return make_survival(seed=3, patients={"A": 6000, "B": 3000, "C": 3000})


def test_the_sample_files_are_what_the_command_writes(tmp_path: Path) -> None:
    main([str(tmp_path)])
    for name in ("patients.csv", "truth.csv", "dictionary.csv", "SHA256SUMS"):
        assert (tmp_path / name).read_bytes() == (SAMPLES / name).read_bytes(), name


def test_bytes_do_not_depend_on_vector_units() -> None:
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    script = "import hashlib, medkit.synth.survival as s; f = s.make_survival()\n"
    script += "print(hashlib.sha256((f.patients_csv() + f.truth_csv()).encode()).hexdigest())"
    off = " ".join(name for name in __cpu_dispatch__ if __cpu_features__.get(name))
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"NPY_DISABLE_CPU_FEATURES": off},
        capture_output=True,
        text=True,
        check=True,
    )
    drawn = make_survival()
    text = drawn.patients_csv() + drawn.truth_csv()
    assert done.stdout.strip() == hashlib.sha256(text.encode()).hexdigest()


def test_the_source_uses_only_operations_that_are_exact_on_any_cpu() -> None:
    tree = ast.parse((Path(synth.__file__).parent / "survival.py").read_text())
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    used = {n.attr for n in attributes if isinstance(n.value, ast.Name) and n.value.id == "np"}
    assert used <= EXACT, f"not known to be exact: {sorted(used - EXACT)}"
    assert not any(isinstance(n, ast.MatMult) for n in ast.walk(tree))
    assert not {n.attr for n in attributes} & {"sum", "mean", "std", "var", "dot", "prod"}


def test_another_seed_gives_other_patients() -> None:
    few = {"A": 50}
    one, other = (make_survival(seed=seed, patients=few).patients_csv() for seed in (1, 2))
    assert one != other


def test_events_times_and_sites_are_as_described(many: Followed) -> None:
    assert 0.15 < many.died.mean() < 0.3
    assert many.days.min() >= 1
    for site, longest in FOLLOW_UP_DAYS.items():
        assert many.days[many.site == site].max() <= longest + 1
    assert len(np.unique(many.days[many.died == 1])) < many.died.sum()  # some are tied


def test_deaths_follow_the_known_hazards(many: Followed) -> None:
    fitted = fit_cox(many.eta[:, None], many.days, many.died)
    assert fitted.coef[0] == pytest.approx(1.0, abs=0.08)


def test_the_known_probability_is_calibrated_at_three_years(many: Followed) -> None:
    # Breslow's curve with the true hazards, an estimate from the days alone, beside the truth
    hazard = breslow(many.days, many.died, many.eta)
    order = np.argsort(many.eta)
    for rows in np.array_split(order, 5):
        found = hazard.survival(many.eta[rows], 1095).mean()
        assert many.survival(1095)[rows].mean() == pytest.approx(found, abs=0.01)


def test_blanks_are_as_described(many: Followed) -> None:
    her2, ki67 = (np.array(many.cells[name]) == "" for name in ("her2_positive", "ki67_percent"))
    assert her2[many.site == "C"].all()
    assert not her2[many.site == "A"].all()
    assert abs(ki67[many.site == "B"].mean() - 0.6) < 0.04
    every = np.mean([np.array(cells) == "" for cells in make_survival().cells.values()])
    assert 0.1 < every < 0.16


def test_the_dictionary_names_every_column_of_the_table() -> None:
    header = next(csv.reader(io.StringIO(make_survival(patients={"A": 2}).patients_csv())))
    rows = csv.reader(io.StringIO(dictionary_csv()))
    assert [row[0] for row in rows][1:] == header
    assert len(COLUMNS) == len(header) - 4


@pytest.mark.parametrize("patients", [{"Z": 10}, {"A": 0}, {}])
def test_unknown_clinics_are_refused(patients: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"sites A, B and C, got .*not described"):
        make_survival(patients=patients)
