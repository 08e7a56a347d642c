from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
import yaml

from medkit import cli
from medkit.data.ehr import EHRDataModule
from medkit.data.survival import SurvivalDataModule
from medkit.keyed import globals_keyed
from medkit.models import predict as predicting
from medkit.models.classifier import LitClassifier
from medkit.models.ensemble import FoldEnsemble, fit_folds
from medkit.models.survival import LitCox
from medkit.models.tabular import warm_classifier
from medkit.record.checkpoints import commit
from medkit.record.folder import RunFolder
from medkit.record.results import Metric, write_metrics
from medkit.synth.ehr import MISSING_CODES
from medkit.trainer import stable_trainer, start_run

pytestmark = [
    pytest.mark.usefixtures("_as_before_a_run"),
    pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]
SAMPLES = Path(__file__).resolve().parents[2] / "data_samples"
ENCOUNTERS, CONTRACT = SAMPLES / "ehr" / "encounters.csv", SAMPLES / "ehr" / "contract.yaml"
PATIENTS = SAMPLES / "survival" / "patients.csv"
QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False}


def arrivals(**changes: Any) -> pd.DataFrame:
    """Rows to predict: patients with leading zeros, no outcome, units as each site writes them."""
    frame = pd.read_csv(ENCOUNTERS, dtype=str).head(120).drop(columns="died")
    frame["patient_id"] = [f"00{n}" for n in range(len(frame))]
    return frame.assign(**changes)


@pytest.fixture(scope="module")
def agreed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a fold ensemble trained under a contract, site C held out."""
    folder = tmp_path_factory.mktemp("agreed") / "run"
    run = start_run(folder, seed=0, threads=1)
    settings: dict[str, Any] = {"target": "died", "site": "site", "contract": CONTRACT}
    settings |= {"test_site": "C", "folds": 2}
    fit_folds(
        run,
        data=lambda fold: EHRDataModule(ENCOUNTERS, fold=fold, **settings),
        model=lambda dm: warm_classifier(dm, max_epochs=1, net_args={"hidden": [4]}),
        trainer=partial(stable_trainer, run, max_epochs=1, **QUIET),
        folds=2,
    )
    run.finish()
    return folder


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A run with one stage, trained without a contract."""
    folder = RunFolder.create(tmp_path / "bare", status="done")
    settings = {"target": "died", "site": "site", "test_site": "C", "missing_codes": MISSING_CODES}
    stage(folder, "fit", EHRDataModule(ENCOUNTERS, **settings))
    return folder.path


def stage(folder: RunFolder, name: str, dm: pl.LightningDataModule, *, l2: bool = False) -> None:
    dm.setup("fit")
    kind = LitCox if l2 else LitClassifier
    model = kind("medkit.models.nets:mlp", {"inputs": dm.num_features, "hidden": [2]})
    options = {"logger": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(**QUIET, **options, max_steps=1, limit_val_batches=0)
    trainer.fit(model, dm)
    commit(folder.stage_dir(name) / "finished.ckpt", trainer.save_checkpoint)


@pytest.fixture
def medkit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Predict as at a terminal; a table that is a frame is written first. Code and words."""
    monkeypatch.chdir(tmp_path)

    def call(run_dir: Path, table: pd.DataFrame | str, *words: str) -> tuple[int, str]:
        if isinstance(table, pd.DataFrame):
            table.to_csv("new.csv", index=False)
            table = "new.csv"
        code = cli.main(["predict", str(run_dir), table, *words])
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


def written(name: str = "new.predicted.csv") -> pd.DataFrame:
    return pd.read_csv(name, dtype={"patient_id": str}, keep_default_na=False)


def left_behind() -> list[str]:
    return sorted(path.name for path in Path.cwd().iterdir() if path.is_file())


Medkit = Callable[..., tuple[int, str]]


def test_predictions_are_those_of_the_stored_ensemble(agreed: Path, medkit: Medkit) -> None:
    assert medkit(agreed, arrivals())[0] == 0
    want = FoldEnsemble.load(agreed).predict("new.csv")
    found = written()
    np.testing.assert_allclose(found["prob"], want.prob, rtol=1e-12)
    np.testing.assert_allclose(found["prob_logistic"], want.baseline, rtol=1e-12)
    np.testing.assert_allclose(found["spread"], want.spread, rtol=1e-9)


def test_each_row_has_its_number_and_the_tables_own_patient_and_site(
    agreed: Path, medkit: Medkit
) -> None:
    medkit(agreed, arrivals())
    found = written()
    assert list(found) == [
        *("patient_id", "site", "row", "prob", "prob_logistic", "spread", "outside")
    ]
    assert found["patient_id"].tolist() == arrivals()["patient_id"].tolist()
    assert found["row"].tolist() == list(range(1, 121))


def test_the_run_folder_stays_as_it_is(agreed: Path, medkit: Medkit) -> None:
    def state() -> dict[str, tuple[str, int]]:
        files = [path for path in agreed.rglob("*") if path.is_file()]
        return {
            str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
            for path in files
        }

    before = state()
    medkit(agreed, arrivals())
    assert state() == before


def test_parquet_gives_the_numbers_of_csv(agreed: Path, medkit: Medkit) -> None:
    medkit(agreed, arrivals())
    pd.read_csv("new.csv", dtype={"patient_id": str}).to_parquet("new.parquet")
    assert medkit(agreed, "new.parquet")[0] == 0
    parquet = pd.read_parquet("new.predicted.parquet")
    np.testing.assert_array_equal(parquet["prob"], written()["prob"])
    assert parquet["outside"].tolist() == written()["outside"].tolist()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_read_in_parts_is_predicted_as_a_whole_one(
    suffix: str, agreed: Path, medkit: Medkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = arrivals()
    frame.loc[100, "age"] = "unknown"  # only the last part holds text
    frame.to_csv("new.csv", index=False)
    medkit(agreed, "new.csv", "--out", f"whole.{suffix}")
    monkeypatch.setattr(predicting, "ROWS", 50)
    medkit(agreed, "new.csv", "--out", f"parts.{suffix}")
    read = pd.read_csv if suffix == "csv" else pd.read_parquet
    pd.testing.assert_frame_equal(
        read(f"parts.{suffix}"), read(f"whole.{suffix}"), rtol=1e-12, check_exact=False
    )


def test_labels_in_the_table_are_not_looked_at(agreed: Path, medkit: Medkit) -> None:
    medkit(agreed, arrivals())
    before = written()
    medkit(agreed, arrivals(died="not known yet"), "--force")
    pd.testing.assert_frame_equal(written(), before)


def test_values_that_break_the_contract_are_flagged_by_row(agreed: Path, medkit: Medkit) -> None:
    frame = arrivals()
    frame.loc[[3, 5], "temperature"] = ["370", "high"]
    code, said = medkit(agreed, frame)
    found = written()["outside"]
    assert code == 0
    assert "temperature 370 above 45 degC" in found[3]
    assert "temperature" not in found[4]
    assert "temperature 'high' is not a number" in found[5]
    assert "2  temperature breaks the contract: 1 not a number, 1 above 45 degC\n" in said


def test_a_site_that_measures_in_another_unit_is_flagged_without_a_contract(
    bare: Path, medkit: Medkit
) -> None:
    frame = arrivals()
    at_a = frame["site"] == "A"
    urea = pd.to_numeric(frame["urea"])
    frame["urea"] = urea.where(~at_a | (urea <= 0), urea / 6)  # mg/dL to mmol/L
    said = medkit(bare, frame)[1]
    flagged = written()["outside"].str.contains("urea of the whole site far below training")
    assert flagged[at_a].all()
    assert not flagged[frame["site"] == "B"].any()
    assert "no data contract: units and codes are taken to be those" in said


def test_strict_writes_nothing_where_a_row_is_outside(agreed: Path, medkit: Medkit) -> None:
    frame = arrivals(temperature="370")
    code, said = medkit(agreed, frame, "--strict")
    assert code == 1
    assert "120 of 120 are not:" in said
    assert "look at the column `outside`" in said
    assert left_behind() == ["new.csv"]


def test_strict_writes_where_no_row_is_outside(agreed: Path, medkit: Medkit) -> None:
    medkit(agreed, arrivals())
    inside = written()["outside"] == ""
    assert inside.sum() > 20
    assert medkit(agreed, arrivals()[inside.to_numpy()], "--strict", "--force")[0] == 0


def test_a_site_that_was_not_trained_on_comes_with_a_warning(agreed: Path, medkit: Medkit) -> None:
    frame = arrivals()
    said = medkit(agreed, frame)[1]
    assert f"not trained on: site 'C' ({(frame['site'] == 'C').sum()} rows)" in said
    assert "not trained on" not in medkit(agreed, frame[frame["site"] == "A"], "--force")[1]


def test_a_site_nobody_knows_is_flagged(bare: Path, medkit: Medkit) -> None:
    frame = arrivals()
    frame.loc[:19, "site"] = "Z"
    medkit(bare, frame)
    assert (
        written()["outside"].str.contains("site not in training").tolist()
        == [True] * 20 + [False] * 100
    )


def test_further_sites_come_with_a_contract(agreed: Path, medkit: Medkit) -> None:
    frame = arrivals()
    medkit(agreed, frame)
    before = written()
    plain = yaml.safe_load(CONTRACT.read_text())
    for rule in plain["columns"].values():
        for key in ("units_at", "missing_at"):
            if "C" in rule.get(key, {}):
                rule[key]["Z"] = rule[key]["C"]
    Path("further.yaml").write_text(yaml.safe_dump(plain | {"sites": ["A", "B", "C", "Z"]}))
    moved = frame.assign(site=frame["site"].replace("C", "Z"))
    code, said = medkit(agreed, moved, "--contract", "further.yaml", "--force")
    assert code == 0, said
    np.testing.assert_array_equal(written()["prob"], before["prob"])


def test_a_contract_that_says_something_else_is_refused(agreed: Path, medkit: Medkit) -> None:
    plain = yaml.safe_load(CONTRACT.read_text())
    plain["columns"]["age"]["high"] = 500
    Path("other.yaml").write_text(yaml.safe_dump(plain))
    code, said = medkit(agreed, arrivals(), "--contract", "other.yaml")
    assert code == 2
    assert "must be the stored one with sites, units_at" in said
    assert "it differs in ['age']" in said


def test_a_contract_for_a_run_without_one_is_refused(bare: Path, medkit: Medkit) -> None:
    code, said = medkit(bare, arrivals(), "--contract", str(CONTRACT))
    assert code == 2
    assert "this run has none. Leave it out" in said


def empty_site(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(site=frame["site"].where(frame.index != 7))


BAD_TABLES = {
    "missing": (lambda f: f.drop(columns="urea"), "them, empty where not measured."),
    "unit": (lambda f: f.assign(site="Z"), "found 'Z', and ['creatinine', 'glucose'] are in other"),
    "site": (empty_site, "must be filled in each row; it is empty in 1 row (first: row 8"),
    "no site": (
        lambda f: f.drop(columns="site"),
        "no column 'site'. Add it, with one of ['A', 'B'",
    ),
    "empty": (lambda f: f.head(0), "must have at least one row below its column names"),
    "twice": (lambda f: pd.concat([f, f["age"]], axis=1), "each column once, and ['age'] stand"),
}


@pytest.mark.parametrize("what", BAD_TABLES)
def test_a_table_that_is_not_the_contracts_is_refused(
    what: str, agreed: Path, medkit: Medkit
) -> None:
    broken, words = BAD_TABLES[what]
    code, said = medkit(agreed, broken(arrivals()))
    assert code == 2
    assert words in said
    assert left_behind() == ["new.csv"]


BAD_WITHOUT = {
    "missing": (lambda f: f.drop(columns="urea"), "was trained on, and ['urea'] are not among"),
    "renamed": (lambda f: f.rename(columns={"urea": "Urea"}), "Is 'Urea' 'urea'? Rename it."),
    "text": (lambda f: f.assign(age="old"), "column 'age' must be numeric; found 'old'"),
    "site": (empty_site, "must be filled in each row; it is empty in 1 row"),
    "endless": (lambda f: f.assign(age="inf"), "must hold finite numbers"),
}


@pytest.mark.parametrize("what", BAD_WITHOUT)
def test_a_table_that_is_not_like_the_trained_one_is_refused(
    what: str, bare: Path, medkit: Medkit
) -> None:
    broken, words = BAD_WITHOUT[what]
    code, said = medkit(bare, broken(arrivals()))
    assert code == 2
    assert words in said
    assert left_behind() == ["new.csv"]


def test_an_error_in_a_later_part_says_from_where_its_rows_are_counted(
    bare: Path, medkit: Medkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "ROWS", 50)
    frame = arrivals()
    frame.loc[107, "age"] = "old"
    assert "(its rows are counted from row 101 on)" in medkit(bare, frame)[1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "a table must be a CSV or Parquet file, and new.csv is none"),
        (b"", "must begin with a line of column names"),
        (b"\xff\xfe\x00a,b\n", "must be UTF-8 text with commas"),
    ],
)
def test_a_file_that_is_no_table_is_refused(
    content: bytes | None, words: str, bare: Path, medkit: Medkit
) -> None:
    if content is not None:
        Path("new.csv").write_bytes(content)
    code, said = medkit(bare, "new.csv")
    assert code == 2
    assert words in said


def test_a_folder_is_no_table(bare: Path, medkit: Medkit) -> None:
    code, said = medkit(bare, ".")
    assert code == 2
    assert "a table must be a CSV or Parquet file, and . is none" in said


def test_a_file_that_is_there_is_replaced_by_force_alone(bare: Path, medkit: Medkit) -> None:
    Path("out.csv").write_text("mine")
    code, said = medkit(bare, arrivals(), "--out", "out.csv")
    assert (code, Path("out.csv").read_text()) == (2, "mine")
    assert "or replace it with --force" in said
    assert medkit(bare, arrivals(), "--out", "out.csv", "--force")[0] == 0


def test_the_table_itself_is_never_replaced(bare: Path, medkit: Medkit) -> None:
    assert medkit(bare, arrivals(), "--out", "new.csv", "--force")[0] == 2
    assert "prob" not in pd.read_csv("new.csv")


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("bare/predicted.csv", "is inside the run folder, where ids are pseudonyms"),
        ("predicted.xlsx", "are written as .csv or .parquet, got 'predicted.xlsx'"),
        ("nowhere/predicted.csv", "must be written into a folder that is there"),
    ],
)
def test_predictions_go_where_they_may(out: str, words: str, bare: Path, medkit: Medkit) -> None:
    code, said = medkit(bare, arrivals(), "--out", out)
    assert code == 2
    assert words in said


def test_ctrl_c_leaves_nothing(bare: Path, medkit: Medkit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "ROWS", 50)
    score, calls = predicting.SavedClassifier.score, []

    def cut(self: Any, table: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(self, table)

    monkeypatch.setattr(predicting.SavedClassifier, "score", cut)
    assert medkit(bare, arrivals())[0] == 130
    assert left_behind() == ["new.csv"]


def test_a_full_disk_leaves_nothing(
    bare: Path, medkit: Medkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    code, said = medkit(bare, arrivals())
    assert code == 2
    assert "can't be: No space left on device. Nothing was left there; make room" in said
    assert left_behind() == ["new.csv"]


def test_a_tables_own_column_is_not_lost_to_one_of_ours(tmp_path: Path, medkit: Medkit) -> None:
    folder = RunFolder.create(tmp_path / "run")
    table = pd.read_csv(ENCOUNTERS).rename(columns={"patient_id": "row"})
    table.to_csv("trained.csv", index=False)
    stage(folder, "fit", EHRDataModule("trained.csv", target="died", patient="row", site="site"))
    medkit(folder.path, arrivals().rename(columns={"patient_id": "row"}))
    assert written()["table_row"].astype(str).tolist()[:2] == ["0", "1"]
    assert written()["row"].tolist()[:2] == [1, 2]


def test_the_runs_threshold_makes_a_column(bare: Path, medkit: Medkit) -> None:
    write_metrics(bare / "metrics.json", {"val/threshold": 0.3, "test/sensitivity": 0.5})
    said = medkit(bare, arrivals())[1]
    found = written()
    assert found["positive"].tolist() == (found["prob"] >= 0.3).astype(int).tolist()
    assert "positive: from 0.3 on" in said


def test_a_run_that_says_use_logistic_regression_says_so_again(bare: Path, medkit: Medkit) -> None:
    for low, said in ((-0.01, True), (0.001, False)):
        better = {"test/auroc_minus_logistic": Metric(0.01, low, 0.03)}
        write_metrics(bare / "metrics.json", better)
        assert ("use prob_logistic" in medkit(bare, arrivals(), "--force")[1]) == said


def test_of_several_stages_one_must_be_named(bare: Path, medkit: Medkit) -> None:
    other = EHRDataModule(ENCOUNTERS, target="died", site="site", test_site="C", indicators=False)
    stage(RunFolder(bare), "plain", other)
    code, said = medkit(bare, arrivals())
    assert code == 2
    assert "it has ['fit', 'plain']. Name one with --stage." in said
    assert "Did you mean 'plain'?" in medkit(bare, arrivals(), "--stage", "plane")[1]
    assert "scored by plain" in medkit(bare, arrivals(), "--stage", "plain")[1]


def test_a_column_that_was_not_measured_may_be_empty(agreed: Path, medkit: Medkit) -> None:
    code, said = medkit(agreed, arrivals(urea=""))
    assert code == 0, said
    assert "no value at 'A' in urea" in said


@pytest.fixture
def in_turn(tmp_path: Path) -> Path:
    """A run with a model for each of two hospitals that it has not seen."""
    folder = RunFolder.create(tmp_path / "turn", status="done")
    settings = {"target": "died", "site": "site", "missing_codes": MISSING_CODES}
    for site in "AB":
        dm = EHRDataModule(ENCOUNTERS, test_site=site, **settings)
        stage(folder, f"site_{site.lower()}_fold0", dm)
    return folder.path


def test_models_of_hospitals_in_turn_are_told_apart(in_turn: Path, medkit: Medkit) -> None:
    code, said = medkit(in_turn, arrivals())
    assert code == 2
    assert "'site_a_fold0' without 'A', 'site_b_fold0' without 'B') and none on all" in said
    assert said.rstrip().endswith("Name one with --stage.")


def test_a_model_has_the_threshold_and_the_rival_of_its_own_hospital(
    in_turn: Path, medkit: Medkit
) -> None:
    found: dict[str, Any] = {f"val/site_{s}/threshold": t for s, t in (("a", 0.2), ("b", 0.4))}
    lows = {"test": -0.2, "test/site_a": 0.01, "test/site_b": -0.1}
    found |= {f"{n}/auroc_minus_logistic": Metric(0.05, low, 0.1) for n, low in lows.items()}
    write_metrics(in_turn / "metrics.json", found)
    at_a = medkit(in_turn, arrivals(), "--stage", "site_a_fold0")[1]
    assert "positive: from 0.2 on" in at_a
    assert "use prob_logistic" not in at_a
    at_b = medkit(in_turn, arrivals(), "--stage", "site_b_fold0", "--force")[1]
    assert "positive: from 0.4 on" in at_b
    assert "(test/site_b/auroc_minus_logistic): use prob_logistic" in at_b


def test_anothers_threshold_is_not_taken(in_turn: Path, medkit: Medkit) -> None:
    write_metrics(in_turn / "metrics.json", {"val/site_b/threshold": 0.4})
    assert "positive" not in medkit(in_turn, arrivals(), "--stage", "site_a_fold0")[1]


@pytest.mark.parametrize(("status", "said"), [("failed", True), ("done", False)])
def test_a_run_that_failed_says_so(status: str, said: bool, bare: Path, medkit: Medkit) -> None:
    RunFolder(bare).update(status=status)
    words = medkit(bare, arrivals())[1]
    assert ("the run is not done, its status is 'failed'" in words) == said


def test_one_net_has_no_spread(bare: Path, medkit: Medkit) -> None:
    medkit(bare, arrivals())
    assert set(written()["spread"]) == {""}


def test_the_best_of_a_single_stage_is_taken(bare: Path, medkit: Medkit) -> None:
    best = bare / "checkpoints" / "best"
    best.mkdir()
    (best / "best.ckpt").write_bytes((bare / "checkpoints/fit/finished.ckpt").read_bytes())
    assert "scored by best" in medkit(bare, arrivals())[1]


def test_a_stage_that_was_not_finished_is_refused(bare: Path, medkit: Medkit) -> None:
    fit = bare / "checkpoints" / "fit"
    for name in ("", ".sha256"):
        (fit / f"finished.ckpt{name}").rename(fit / f"resume-e000000-b00000001.ckpt{name}")
    code, said = medkit(bare, arrivals())
    assert code == 2
    assert "stage 'fit' has only a resume point. Resume the run." in said


def test_a_damaged_checkpoint_is_refused(bare: Path, medkit: Medkit) -> None:
    (bare / "checkpoints" / "fit" / "finished.ckpt").write_bytes(b"cut off")
    code, said = medkit(bare, arrivals())
    assert code == 2
    assert "has no undamaged checkpoint" in said


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("exploded"),)


def test_code_in_a_checkpoint_is_not_run(bare: Path, medkit: Medkit) -> None:
    best = bare / "checkpoints" / "best"
    best.mkdir()
    torch.save({"x": Bomb()}, best / "best.ckpt")
    code, said = medkit(bare, arrivals())
    assert code == 2
    assert "does it hold Python objects? Those are never loaded." in said
    assert left_behind() == ["new.csv"]


def test_weights_of_another_module_are_refused(bare: Path, medkit: Medkit) -> None:
    best = bare / "checkpoints" / "best"
    best.mkdir()
    torch.save({"state_dict": {}}, best / "best.ckpt")
    code, said = medkit(bare, arrivals())
    assert code == 2
    assert "best/best.ckpt is of another module or data" in said


@pytest.mark.parametrize("run", ["", "runs"])
def test_a_folder_without_a_run_is_refused(run: str, tmp_path: Path, medkit: Medkit) -> None:
    code, said = medkit(tmp_path / run, arrivals())
    assert code == 2
    assert "needs a run folder with a run.json in it" in said


def test_a_run_that_trained_nothing_is_refused(tmp_path: Path, medkit: Medkit) -> None:
    RunFolder.create(tmp_path / "run")
    code, said = medkit(tmp_path / "run", arrivals())
    assert code == 2
    assert "holds no checkpoint" in said


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two Cox nets that differ in their seed."""
    parameters = {"event": "died", "time": "days", "horizon": 365.0}
    path = tmp_path_factory.mktemp("followed") / "run"
    folder = RunFolder.create(path, status="done", parameters=parameters)
    for name in ("seed0", "seed1"):
        roles = {"time": "days", "event": "died", "site": "site", "test_site": "C"}
        with globals_keyed(0, "init", name):
            stage(folder, name, SurvivalDataModule(PATIENTS, **roles), l2=True)
    return folder.path


def test_patients_get_a_risk_and_survival_at_horizons(followed: Path, medkit: Medkit) -> None:
    new = pd.read_csv(PATIENTS, dtype=str).drop(columns=["days", "died"])
    assert medkit(followed, new, "--horizon", "365", "--horizon", "1000")[0] == 0
    found = written()
    paths = [followed / "checkpoints" / f"seed{n}" / "finished.ckpt" for n in (0, 1)]
    eta, alive = [], []
    for path in paths:
        model = LitCox.load_from_checkpoint(path, weights_only=True).eval()
        dm = SurvivalDataModule.load_from_checkpoint(path, weights_only=True)
        x = dm.apply(Path("new.csv")).x
        eta.append(model(x).detach().double().numpy())
        alive.append(model.survival(x, 1000.0).numpy())
    np.testing.assert_allclose(found["risk"], np.mean(eta, axis=0), atol=1e-6)
    np.testing.assert_allclose(found["spread"], np.std(eta, axis=0), atol=1e-6)
    np.testing.assert_allclose(found["survival_1000"], np.mean(alive, axis=0), atol=1e-6)
    np.testing.assert_allclose(found["risk_cox"], dm.baseline.risk(x), atol=1e-6)
    assert (found["survival_365"] >= found["survival_1000"]).all()


def test_the_horizon_is_the_runs_own_unless_given(followed: Path, medkit: Medkit) -> None:
    said = medkit(followed, pd.read_csv(PATIENTS, dtype=str))[1]
    assert "survival_365" in written()
    assert "mean predicted risk until 365:" in said


def test_without_a_horizon_there_is_a_risk_alone(
    followed: Path, medkit: Medkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "_horizons", lambda folder: ())
    code, said = medkit(followed, pd.read_csv(PATIENTS, dtype=str))
    assert code == 0
    assert list(written())[2:] == ["row", "risk", "risk_cox", "spread", "outside"]
    assert "mean predicted risk" not in said


def test_a_horizon_beyond_the_follow_up_is_refused(followed: Path, medkit: Medkit) -> None:
    code, said = medkit(followed, pd.read_csv(PATIENTS, dtype=str), "--horizon", "1e6")
    assert code == 2
    assert "must lie within the follow-up" in said


@pytest.mark.parametrize("horizon", ["-5", "0", "nan"])
def test_a_horizon_that_is_no_time_is_refused(horizon: str, followed: Path, medkit: Medkit) -> None:
    code, said = medkit(followed, pd.read_csv(PATIENTS, dtype=str), "--horizon", horizon)
    assert code == 2
    assert "a horizon must be a time above 0, in the unit of training" in said
    assert f"{float(horizon):g} is" in said


def test_one_cox_net_has_no_spread(followed: Path, medkit: Medkit) -> None:
    medkit(followed, pd.read_csv(PATIENTS, dtype=str), "--stage", "seed0")
    assert set(written()["spread"]) == {""}


def test_a_horizon_is_none_of_a_classifiers(bare: Path, medkit: Medkit) -> None:
    code, said = medkit(bare, arrivals(), "--horizon", "30")
    assert code == 2
    assert "is a classifier without times" in said


@pytest.mark.slow
def test_notebook_01_predicts_new_rows_as_it_did_itself_and_sees_broken_units(
    tmp_path: Path, medkit: Medkit
) -> None:
    notebook = SAMPLES.parent / "notebooks" / "01_first_training.ipynb"
    words = ["run", str(notebook), "-p", "quick", "true", "--out", str(tmp_path / "run")]
    assert cli.main(words) == 0
    frame = pd.read_csv(ENCOUNTERS)
    there = frame[frame["site"] == "C"].drop(columns="died")
    medkit(tmp_path / "run", there)
    as_written = written()["outside"]
    assert as_written.str.contains("creatinine of the whole site far above training").all()
    medkit(tmp_path / "run", there.assign(creatinine=there["creatinine"] * 0.01131), "--force")
    found = written()
    assert not found["outside"].str.contains("creatinine").any()
    recorded = pd.read_parquet(tmp_path / "run" / "predictions" / "test_site_c.parquet")
    np.testing.assert_allclose(found["prob"], recorded["score"], atol=1e-6)


@pytest.mark.slow
def test_notebook_14_predicts_survival_as_the_mean_of_its_seeds(
    tmp_path: Path, medkit: Medkit
) -> None:
    notebook = SAMPLES.parent / "notebooks" / "14_survival_between_hospitals.ipynb"
    words = ["run", str(notebook), "-p", "quick", "true", "--out", str(tmp_path / "run")]
    assert cli.main(words) == 0
    said = medkit(tmp_path / "run", pd.read_csv(PATIENTS, dtype=str))[1]
    assert "scored by seed0, seed1, seed2" in said
    assert written()["survival_1095"].between(0, 1).all()
