"""Predictions in the layouts that people use, and what is said of any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medkit.record.folder import RunFolder
from medkit.study.compare_command import compare_command, text_of
from medkit.study.compare_results import compare_results
from medkit.study.outcomes import Outcome
from medkit.study.predictions import Predictions
from medkit.study.results_table import Results, load

Frame = pd.DataFrame


@pytest.fixture
def long() -> Frame:
    """Three trainings of 40 patients of two sites, ids with leading zeros."""
    draw = np.random.default_rng(0)
    y = np.tile((draw.random(40) < 0.4).astype(int), 3)
    return Frame(
        {
            "patient": np.tile([f"{row:03d}" for row in range(40)], 3),
            "y": y,
            "score": y + draw.normal(size=120),
            "seed": np.repeat([0, 1, 10], 40),
            "site": np.tile(["north", "south"], 60),
        }
    )


def written(table: Frame, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)
    return path


def predictions(path: Path, **options: Any) -> Predictions:
    found = load(path, **options)
    assert isinstance(found, Predictions)
    return found


def test_three_layouts_hold_the_same_predictions(long: Frame, tmp_path: Path) -> None:
    wide = long[long["seed"] == 0].drop(columns=["score", "seed"])
    for seed, rows in long.groupby("seed"):
        wide[f"seed_{seed}"] = rows["score"].to_numpy()
        written(rows.drop(columns="seed").sample(frac=1), tmp_path / f"each/net2_seed{seed}.csv")
    paths = [written(long, tmp_path / "long.csv"), written(wide, tmp_path / "wide.csv")]
    found = [predictions(path) for path in [*paths, tmp_path / "each"]]
    for one in found:
        assert one.seeds == ("0", "1", "10")
        np.testing.assert_array_equal(one.scores, found[0].scores)
        np.testing.assert_array_equal(one.y, found[0].y)
        assert one.row.tolist() == found[0].row.tolist()
        assert one.site is not None
        assert one.groups is None
    assert found[0].patient[7] == "007"


def test_predictions_in_memory_are_those_of_a_file(long: Frame, tmp_path: Path) -> None:
    rows = long[long["seed"] == 0]
    scores = {seed: part["score"].to_numpy() for seed, part in long.groupby("seed")}
    got = Predictions.of(
        "net", y=rows["y"], scores=scores, patient=rows["patient"], site=rows["site"]
    )
    want = predictions(written(long, tmp_path / "long.csv"))
    np.testing.assert_array_equal(got.scores, want.scores)
    assert (got.seeds, got.row.tolist()) == (want.seeds, want.row.tolist())
    assert Predictions.of("net", y=rows["y"], scores=scores).groups is None


def test_copies_of_one_training_are_named_as_such(long: Frame, tmp_path: Path) -> None:
    first = long["score"].iloc[:40].tolist()
    found = predictions(written(long.assign(score=first * 3), tmp_path / "copies.csv"))
    assert "say the same of every row: it draws nothing, or they are copies" in found.notes[0]


def test_parquet_and_other_usual_names_are_read(long: Frame, tmp_path: Path) -> None:
    names = {"patient": "Subject_ID", "y": "label", "score": "Prob", "site": "hospital"}
    long.rename(columns=names).to_parquet(tmp_path / "p.parquet")
    assert predictions(tmp_path / "p.parquet").scores.shape == (3, 40)


def test_a_file_without_seeds_is_one_training(long: Frame, tmp_path: Path) -> None:
    one = long[long["seed"] == 0].drop(columns="seed")
    assert predictions(written(one, tmp_path / "logistic.csv")).seeds == ("?",)


def test_rows_of_a_patient_are_matched_by_their_ids_or_said_to_be_by_their_order(
    long: Frame, tmp_path: Path
) -> None:
    stays = long.assign(patient=[p[:2] for p in long["patient"]])
    found = predictions(written(stays, tmp_path / "order.csv"))
    assert found.groups is not None
    assert "matched by their order" in found.notes[0]
    named = stays.assign(row=np.tile(np.arange(40), 3)).sample(frac=1, random_state=0)
    found = predictions(written(named, tmp_path / "named.csv"))
    assert found.notes == ()
    assert found.scores.shape == (3, 40)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="score"), r"no column for score; found \['patient', 'y', 'seed"),
        (lambda t: t.drop(columns=["patient", "y"]), r"no column for patient, y; found"),
        (lambda t: t.assign(label=t["y"]), r"one column for y, and \['y', 'label'\] could each"),
        (lambda t: t.iloc[1:], r"has 40, .* 39, and 39 are in both\. Score one test set"),
        (lambda t: pd.concat([t, t]).assign(row=1), r"each row once; 40 of 80 are there again"),
        (
            lambda t: t.assign(y="yes"),
            r"seed 0: y must be numbers; 40 of 40 rows hold a text, .* 'yes'",
        ),
        (lambda t: t.assign(score="0,5"), r"score must be numbers; 40 of 40 .* such as '0,5'"),
        (lambda t: t.assign(y=t["y"] * 2), r"y must be 0 or 1 everywhere; found 2"),
        (
            lambda t: t.assign(score=t["score"].where(t.index != 5)),
            r"seed 0: score must be finite everywhere; found nan in 1 of 40 places",
        ),
        (
            lambda t: t.assign(y=t["y"].where(t.index != 50, 1 - t["y"])),
            r"y must be the same for all seeds; .* differs from .* in 1 of 40 rows",
        ),
        (
            lambda t: t.assign(patient=t["patient"].where(t.index != 3)),
            r"name the patient of each row; 1 of 40 rows have none",
        ),
        (
            lambda t: t.assign(seed=t["seed"].where(t.index != 3)),
            r"must name the seed of each row, and a row has none",
        ),
        (lambda t: t.iloc[:0], r"must have at least one row, and has none"),
    ],
)
def test_wrong_tables_are_refused_with_what_was_found(
    change: Any, message: str, long: Frame, tmp_path: Path
) -> None:
    path = written(change(long), tmp_path / "wrong.csv")
    with pytest.raises(ValueError, match=message):
        load(path)


def test_a_message_about_columns_says_what_the_layouts_are(tmp_path: Path) -> None:
    path = written(Frame({"id": [1], "truth": [1]}), tmp_path / "wrong.csv")
    with pytest.raises(ValueError, match=r"with patient, y, seed_0, seed_1, .* Rename its columns"):
        load(path)


def test_two_files_of_one_seed_are_refused(long: Frame, tmp_path: Path) -> None:
    one = long[long["seed"] == 0].drop(columns="seed")
    written(one, tmp_path / "seed3.csv")
    written(one, tmp_path / "seed03.csv")
    with pytest.raises(ValueError, match=r"hold each seed once; seeds 3 are in several files"):
        load(tmp_path)


def test_a_folder_of_nothing_and_a_path_to_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"must hold runs or tables.*found \['notes.txt'\]"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none\.csv is none"):
        load(tmp_path / "none.csv")


def test_a_method_is_chosen_where_a_file_holds_several(long: Frame, tmp_path: Path) -> None:
    both = pd.concat([long.assign(model="net"), long.assign(model="forest", score=0.5)])
    path = written(both, tmp_path / "both.csv")
    assert predictions(path, method="forest").scores.max() == 0.5
    with pytest.raises(ValueError, match=r"which of its methods is meant; found \['net', 'forest"):
        load(path)
    with pytest.raises(ValueError, match="and not 'tree'"):
        load(path, method="tree")
    with pytest.raises(ValueError, match=r"no column for method.*Leave --methods out"):
        load(written(long, tmp_path / "long.csv"), method="net")


def run(path: Path, table: Frame, *, seed: int, status: str = "done") -> None:
    folder = RunFolder.create(path, seed=seed, status=status)
    rows = table.drop(columns="seed").rename(columns={"patient": "row"})
    rows.to_parquet(folder.subfolder("predictions") / "test.parquet", index=False)


def test_a_sweeps_runs_are_the_trainings_of_a_recipe(long: Frame, tmp_path: Path) -> None:
    for seed in (0, 1, 10):
        run(tmp_path / f"lr=0.1/s{seed}", long[long["seed"] == seed], seed=seed)
    run(tmp_path / "lr=0.1/s11", long[long["seed"] == 1], seed=11, status="failed")
    found = predictions(tmp_path / "lr=0.1")
    assert found.seeds == ("0", "1", "10")
    assert "1 of 4 runs" in found.notes[0]
    assert "failed and left out" in found.notes[0]
    assert "names rows, not patients" in found.notes[1]
    assert predictions(tmp_path / "lr=0.1/s1").seeds == ("1",)
    run(tmp_path / "lr=0.2/s0", long[long["seed"] == 0], seed=0)
    with pytest.raises(ValueError, match=r"runs of one recipe; found those of 2: lr=0.1, lr=0.2"):
        load(tmp_path)


def trained(study: Path, cell: str, table: Frame, *, status: str = "done") -> None:
    """Leave what a study's training of each seed of a table leaves."""
    for seed, rows in table.groupby("seed"):
        one = Outcome(seed=int(str(seed)), status=status, predictions=rows.drop(columns="seed"))
        one.save(study / cell / f"s{seed}")


def test_a_studys_recipe_is_its_trainings_seed_by_seed(long: Frame, tmp_path: Path) -> None:
    trained(tmp_path, "slow/split0", long)
    trained(tmp_path, "slow/split0", long[long["seed"] == 1].assign(seed=4), status="failed")
    (tmp_path / "slow/split0/s0").rename(tmp_path / "slow/split0/s0-again")
    trained(tmp_path, "slow/split0", long[long["seed"] == 0])
    found = predictions(tmp_path / "slow")
    assert found.seeds == ("0", "1", "10")
    assert "1 of 4 trainings" in found.notes[0]
    table = predictions(written(long, tmp_path / "long.csv"))
    assert np.array_equal(found.scores, table.scores)
    assert np.array_equal(found.row, table.row)
    assert predictions(tmp_path / "slow/split0").seeds == found.seeds


def test_a_studys_cell_is_named_where_there_are_several(long: Frame, tmp_path: Path) -> None:
    for cell in ("slow/split0", "slow/split1-north"):
        trained(tmp_path, cell, long)
    with pytest.raises(ValueError, match=r"found those of 2: split0, split1-north\. Name .*split0"):
        load(tmp_path / "slow")
    with pytest.raises(ValueError, match=r"--part names predictions of runs; .* Leave --part out"):
        load(tmp_path / "slow/split0", part="val")
    Outcome(seed=7).save(tmp_path / "slow/split0/s7")
    with pytest.raises(ValueError, match=r"of 4 4 are done, 1 of them without\. Yield"):
        load(tmp_path / "slow/split0")


def test_runs_without_the_predictions_or_of_one_seed_are_refused(
    long: Frame, tmp_path: Path
) -> None:
    one = long[long["seed"] == 0]
    run(tmp_path / "x/s0", one, seed=0)
    with pytest.raises(ValueError, match=r"named 'val' to compare; found \['test'\]\. Name one"):
        load(tmp_path / "x", part="val")
    run(tmp_path / "x/again", one, seed=0)
    with pytest.raises(ValueError, match=r"differ in their seed; found seeds 0, 0"):
        load(tmp_path / "x")
    run(tmp_path / "dead/s0", one, seed=0, status="failed")
    with pytest.raises(ValueError, match=r"hold a run that is done; found 1, none of them done"):
        load(tmp_path / "dead")


def test_the_predictions_of_the_only_test_part_are_read_and_named(
    long: Frame, tmp_path: Path
) -> None:
    run(tmp_path / "s0", long[long["seed"] == 0], seed=0)
    folder = tmp_path / "s0/predictions"
    (folder / "test.parquet").rename(folder / "test_site_c.parquet")
    (folder / "val.parquet").write_bytes(b"never read")
    assert predictions(tmp_path / "s0").notes[0].endswith("named test_site_c were read")
    (folder / "test_site_d.parquet").write_bytes(b"never read")
    with pytest.raises(ValueError, match=r"found \['test_site_c', 'test_site_d', 'val'\]"):
        load(tmp_path / "s0")


@pytest.fixture
def published(tmp_path: Path) -> Path:
    draw = np.random.default_rng(1)
    rows = [
        {"Method": method, "Test": test, "seed": seed, "Metric": base + 0.01 * draw.normal()}
        for method, base in (("FedAvg", 0.70), ("Pooled", 0.75))
        for test in ("north", "south")
        for seed in range(5)
    ]
    return written(Frame(rows), tmp_path / "published.csv")


def results(path: Path, method: str) -> Results:
    found = load(path, method=method)
    assert isinstance(found, Results)
    return found


def test_published_results_get_a_t_over_seeds_and_no_verdict(published: Path) -> None:
    from scipy.stats import ttest_rel

    mine, its = results(published, "Pooled"), results(published, "FedAvg")
    found = compare_results(mine, its)
    want = ttest_rel(list(mine.values["south"].values()), list(its.values["south"].values()))
    line = found.lines[1]
    assert line.name == "south"
    limits = want.confidence_interval()
    got = (line.difference.low, line.difference.high)
    assert got == pytest.approx((limits.low, limits.high), abs=1e-12)
    assert found.auroc is None
    assert found.verdict.startswith("No verdict for other patients: a table of results holds no")
    assert "these patients only" in text_of(found)


def test_published_results_of_other_seeds_and_few_of_them(published: Path, tmp_path: Path) -> None:
    table = pd.read_csv(published)
    moved = table.assign(seed=table["seed"] + 7 * (table["Method"] == "FedAvg"))
    path = written(moved, tmp_path / "moved.csv")
    assert not compare_results(results(path, "Pooled"), results(path, "FedAvg")).paired
    path = written(table[table["seed"] < 3], tmp_path / "few.csv")
    few = compare_results(results(path, "Pooled"), results(path, "FedAvg"))
    assert few.lines[0].difference.low is None


def test_wrong_tables_of_results_are_refused(published: Path, tmp_path: Path) -> None:
    table = pd.read_csv(published)
    twice = written(pd.concat([table, table]), tmp_path / "twice.csv")
    with pytest.raises(ValueError, match=r"one number for each .* found two for test 'north'"):
        load(twice, method="Pooled")
    words = written(table.assign(Metric="auroc"), tmp_path / "words.csv")
    with pytest.raises(ValueError, match=r"a number in each cell of its column metric; found"):
        load(words, method="Pooled")
    north = written(table[table["Test"] == "north"], tmp_path / "north.csv")
    south = written(table[table["Test"] == "south"], tmp_path / "south.csv")
    with pytest.raises(ValueError, match=r"same test sets; found \['north'\] and \['south'\]"):
        compare_results(results(north, "Pooled"), results(south, "Pooled"))


def test_results_and_predictions_are_not_compared(
    published: Path, long: Frame, tmp_path: Path
) -> None:
    path = written(long.assign(method="Pooled"), tmp_path / "long.csv")
    with pytest.raises(ValueError, match=r"needs predictions, row by row; .*: FedAvg holds"):
        compare_command(str(path), str(published), methods=["Pooled", "FedAvg"])


def test_the_published_federated_benchmarks_are_read_as_they_are(real_data: Path) -> None:
    folder = real_data / "flamby_published" / "fed_tcga_brca"
    if not folder.is_dir():
        pytest.skip("real data: flamby_published is not in MEDKIT_REAL_DATA")
    found = compare_results(results(folder, "FedAdam100"), results(folder, "Pooled Training"))
    pooled = next(line for line in found.lines if line.name == "Pooled Test")
    assert (pooled.a, pooled.b) == pytest.approx((0.842, 0.704), abs=0.001)  # as published
    assert pooled.difference.low < 0 < pooled.difference.high
    assert pooled.b_sd == pytest.approx(0.114, abs=0.001)
    assert (found.seeds, found.paired) == ((5, 5), True)
    assert "no variance over patients" in found.verdict


def test_predictions_in_memory_are_matched_by_row_where_rows_are_named() -> None:
    y, patient, row = [0, 1, 1], ["a", "a", "b"], ["r3", "r1", "r2"]
    found = Predictions.of("net", y=y, scores={0: [0.1, 0.2, 0.3]}, patient=patient, row=row)
    assert found.notes == ()
    by_row = dict(zip(found.row.tolist(), found.scores[0].tolist(), strict=True))
    assert sorted(by_row.values()) == [0.1, 0.2, 0.3]
    again = Predictions.of(
        "net", y=y[::-1], scores={0: [0.3, 0.2, 0.1]}, patient=patient[::-1], row=row[::-1]
    )
    assert again.row.tolist() == found.row.tolist()
    assert again.scores.tolist() == found.scores.tolist()
