from __future__ import annotations

import ast
import hashlib
import io
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from medkit import synth
from medkit.data.contract import Contract
from medkit.synth.ehr import Hospitals, contract_yaml, dictionary_csv, main, make_hospitals
from medkit.synth.hospitals import FEATURES

SAMPLES = Path(__file__).parents[2] / "data_samples" / "ehr"
ENCOUNTERS_SHA256 = "c3a05b53362187e6aa3afaeb101f6dbf77983f4388d9cd2a13fae646ab60c242"

# Each is one correctly rounded IEEE operation, a comparison, or about whole numbers and places.
EXACT = {
    "abs", "arange", "argsort", "array", "bool_", "concatenate", "cumsum", "flatnonzero", "float64",
    "floor", "full", "full_like", "int32", "int64", "ldexp", "maximum", "minimum", "ones_like",
    "repeat", "str_", "uint64", "where", "zeros", "zeros_like",
}  # fmt: skip


@pytest.fixture(scope="module")
def many() -> Hospitals:
    return make_hospitals(seed=3, stays={"A": 4000, "B": 4000, "C": 4000})


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_the_encounters_are_the_same_bytes_as_ever() -> None:
    assert sha256(make_hospitals().encounters_csv()) == ENCOUNTERS_SHA256


def test_the_sample_files_are_what_the_command_writes(tmp_path: Path) -> None:
    main([str(tmp_path)])
    for name in (
        "encounters.csv",
        "truth.csv",
        "dictionary.csv",
        "contract.yaml",
        "SHA256SUMS",
    ):
        assert (tmp_path / name).read_bytes() == (SAMPLES / name).read_bytes(), name


@pytest.mark.parametrize("threads", ["1", "2"])
def test_bytes_do_not_depend_on_vector_units_or_blas_threads(threads: str) -> None:
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    script = "import hashlib, medkit.synth.ehr as e; h = e.make_hospitals()\n"
    script += "print(hashlib.sha256((h.encounters_csv() + h.truth_csv()).encode()).hexdigest())"
    digests = set()
    for off in ("", " ".join(name for name in __cpu_dispatch__ if __cpu_features__.get(name))):
        switches = {"NPY_DISABLE_CPU_FEATURES": off, "OPENBLAS_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | switches,
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout)
    drawn = make_hospitals()
    assert digests == {sha256(drawn.encounters_csv() + drawn.truth_csv()) + "\n"}


@pytest.mark.parametrize(
    "name", ["exact.py", "ehr.py", "hospitals.py", "columns.py", "interacting.py"]
)
def test_the_source_uses_only_operations_that_are_exact_on_any_cpu(name: str) -> None:
    tree = ast.parse((Path(synth.__file__).parent / name).read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "np"
    }
    assert used <= EXACT, f"not known to be exact: {sorted(used - EXACT)}"
    powers = [n for n in ast.walk(tree) if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Pow)]
    assert all(isinstance(n.right, ast.Constant | ast.UnaryOp | ast.Name) for n in powers)
    assert not any(isinstance(n, ast.MatMult) for n in ast.walk(tree))
    methods = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    assert not methods & {"sum", "mean", "std", "var", "dot", "prod", "normal", "random"}


def test_another_seed_gives_other_patients() -> None:
    small = {"A": 50}
    assert (
        make_hospitals(seed=1, stays=small).encounters_csv()
        != make_hospitals(seed=2, stays=small).encounters_csv()
    )


def test_sites_differ_in_prevalence_as_described(many: Hospitals) -> None:
    share = {site: many.y[many.site == site].mean() for site in "ABC"}
    for site, want in {"A": 0.12, "B": 0.09, "C": 0.18}.items():
        assert abs(share[site] - want) < 0.02, share


def test_a_third_of_the_cells_is_missing_and_many_of_those_are_coded() -> None:
    drawn = make_hospitals()
    missing = np.mean([gone.mean() for gone in drawn.missing.values()])
    blank = np.mean([[cell == "" for cell in cells] for cells in drawn.cells.values()])
    assert 0.33 < missing < 0.37
    assert 0.3 < 1 - blank / missing < 0.6


def test_a_code_is_never_a_value() -> None:
    drawn = make_hospitals()
    for feature in FEATURES:
        for site, code in (feature.codes or {}).items():
            there = ~drawn.missing[feature.name] & (drawn.site == site)
            values = [drawn.cells[feature.name][row] for row in np.flatnonzero(there)]
            assert values
            assert str(code) not in values, feature.name


def test_patients_have_several_stays_but_only_at_one_site() -> None:
    drawn = make_hospitals()
    sites, stays = defaultdict(set), defaultdict(int)
    for patient, site in zip(drawn.patient, drawn.site, strict=True):
        sites[patient].add(site)
        stays[patient] += 1
    assert all(len(found) == 1 for found in sites.values())
    assert sum(count > 1 for count in stays.values()) > 200


def test_sex_is_the_same_at_each_stay_of_a_patient() -> None:
    drawn = make_hospitals()
    seen = defaultdict(set)
    for patient, sex in zip(drawn.patient, drawn.cells["sex_male"], strict=True):
        seen[patient] |= {sex} - {""}
    assert max(len(found) for found in seen.values()) == 1


def test_the_probability_of_a_row_is_calibrated(many: Hospitals) -> None:
    order = np.argsort(many.prob)
    for rows in np.array_split(order, 10):
        expected, found = many.prob[rows].mean(), many.y[rows].mean()
        error = np.sqrt(np.mean(many.prob[rows] * (1 - many.prob[rows])) / len(rows))
        assert abs(expected - found) < 4 * error


def test_the_probability_of_a_row_ranks_worse_than_the_hidden_severity(many: Hospitals) -> None:
    best = roc_auc_score(many.y, many.prob)
    assert 0.87 < best < roc_auc_score(many.y, many.prob_hidden)


def test_creatinine_is_missing_more_often_in_those_who_live(many: Hospitals) -> None:
    gone = many.missing["creatinine"]
    assert gone[many.y == 0].mean() > gone[many.y == 1].mean() + 0.1


def test_units_differ_between_sites(many: Hospitals) -> None:
    def median(name: str, site: str) -> float:
        rows = np.flatnonzero((many.site == site) & ~many.missing[name])
        return float(np.median([float(many.cells[name][row]) for row in rows]))

    assert 70 < median("creatinine", "C") / median("creatinine", "A") < 110
    assert 14 < median("glucose", "A") / median("glucose", "B") < 22


def test_the_dictionary_names_every_column_of_the_table() -> None:
    header = (SAMPLES / "encounters.csv").read_text().split("\n", 1)[0].split(",")
    described = [line.split(",", 1)[0] for line in dictionary_csv().splitlines()[1:]]
    assert described == header


@pytest.mark.parametrize("family", ["additive", "interacting"])
def test_the_contract_reads_the_table_as_it_was_drawn_and_nothing_breaks_it(family: str) -> None:
    drawn = make_hospitals(family=family)
    contract = Contract.from_text(contract_yaml(family))
    table, broken = contract.apply(pd.read_csv(io.StringIO(drawn.encounters_csv())))
    assert [b for b in broken if not b.expected] == []
    for name, missing in drawn.missing.items():
        assert np.array_equal(table[name].isna(), missing), name
    middle = table.groupby("site")[contract.features].median()
    ratio = middle.max() / middle.min()  # one unit in all hospitals; 18 or 88 otherwise
    assert ratio[["creatinine", "glucose"]].max() < 1.2


def test_an_unknown_hospital_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sites A, B and C, got .*'Z'.*not described"):
        make_hospitals(stays={"Z": 10})
