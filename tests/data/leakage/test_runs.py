from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl

from medkit import cli
from medkit.data.ehr import EHRDataModule
from medkit.data.leakage.findings import Finding, grouped
from medkit.data.leakage.rerun import judge_shuffled, shuffled_parameters, shuffled_table
from medkit.data.leakage.runs import audit_run
from medkit.data.preprocessing import fit
from medkit.data.survival import SurvivalDataModule
from medkit.models.classifier import LitClassifier
from medkit.models.survival import LitCox
from medkit.record.folder import RunFolder
from medkit.record.pseudonym import pseudonym
from tests.data.leakage.cases import ENCOUNTERS, alarms, numbers, of

SETTINGS: dict[str, Any] = {"target": "died", "site": "site"}


def trained(
    folder: RunFolder,
    quiet: dict[str, Any],
    csv_path: Path = ENCOUNTERS,
    stage: str = "fit",
    **settings: Any,
) -> EHRDataModule:
    """Write the checkpoint of a training of one step."""
    dm = EHRDataModule(csv_path, **(settings or {"test_fraction": 0.2}), **SETTINGS)
    dm.setup()
    model = LitClassifier("medkit.models.nets:mlp", {"inputs": dm.num_features, "hidden": [2]})
    trainer = pl.Trainer(**quiet, max_steps=1, limit_val_batches=0)
    trainer.fit(model, dm)
    trainer.save_checkpoint(folder.stage_dir(stage) / "last.ckpt")
    return dm


def predict(folder: RunFolder, name: str, dm: EHRDataModule, part: str, **more: Any) -> None:
    rows = dm.split.part(part)
    ids = [pseudonym(f"{dm.table.patient[row]}:{row}") for row in rows]
    table = {"row": ids, "site": "", "y": dm.table.y[rows], "score": 0.5}
    pd.DataFrame(table | more).to_parquet(folder.subfolder("predictions") / f"{name}.parquet")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run")


def test_a_clean_run_is_audited_from_its_folder(folder: RunFolder, quiet: dict[str, Any]) -> None:
    dm = trained(folder, quiet)
    predict(folder, "val", dm, "val")
    predict(folder, "test_inside", dm, "test")
    found = audit_run(folder.path)
    assert alarms(found.findings) == []
    assert found.leaks == 0
    assert found.checked == [
        "stage fit: encounters.csv, 2000 rows, its split and transformers",
        f"predictions/test_inside.parquet: {len(dm.split.test)} rows and their part",
        f"predictions/val.parquet: {len(dm.split.val)} rows and their part",
        "predictions: whether rows are in both val and test",
    ]
    assert found.text().startswith("0 leaks, 0 suspicious, 1 note\n")


def test_a_run_whose_medians_know_all_rows_is_found_out(
    folder: RunFolder, quiet: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pd.read_csv(ENCOUNTERS)

    def on_all(values: Any, features: Any, **settings: Any) -> Any:
        every = whole[list(features)].to_numpy(np.float32)
        return fit(every, features, **settings | {"rows": None})

    monkeypatch.setattr("medkit.data.preprocessing.fit", on_all)
    trained(folder, quiet)
    monkeypatch.undo()
    found = audit_run(folder.path)
    assert found.leaks == 1
    assert of(found.findings, "fitted on training rows")


def test_test_predictions_of_training_rows_are_found(
    folder: RunFolder, quiet: dict[str, Any]
) -> None:
    dm = trained(folder, quiet)
    predict(folder, "test", dm, "train")
    found = of(audit_run(folder.path).findings, "predictions")
    assert found[0].evidence["trained"] == len(dm.split.train)


def test_rows_that_are_validated_and_tested_on_are_found_without_the_table(
    folder: RunFolder, quiet: dict[str, Any]
) -> None:
    dm = EHRDataModule(ENCOUNTERS, test_fraction=0.2, **SETTINGS)
    dm.setup()
    predict(folder, "val", dm, "val")
    predict(folder, "test", dm, "val")
    found = of(audit_run(folder.path).findings, "predictions")
    assert [f.evidence["rows"] for f in found] == [len(dm.split.val)]


def rows_of(dm: EHRDataModule, rows: Any) -> dict[str, Any]:
    return {
        "row": [pseudonym(f"{dm.table.patient[row]}:{row}") for row in rows],
        "score": np.full(len(rows), 0.5),
    }


@pytest.fixture
def hospitals(
    folder: RunFolder, quiet: dict[str, Any]
) -> tuple[RunFolder, dict[str, EHRDataModule]]:
    """Each of two hospitals held out in turn, with the predictions of each."""
    dms = {
        site: trained(folder, quiet, stage=f"site_{site.lower()}_fold0", test_site=site)
        for site in "AB"
    }
    for site, dm in dms.items():
        predict(folder, f"test_site_{site.lower()}", dm, "test")
        predict(folder, f"val_site_{site.lower()}", dm, "val")
    return folder, dms


def test_hospitals_held_out_in_turn_are_no_leak(
    hospitals: tuple[RunFolder, dict[str, EHRDataModule]],
) -> None:
    folder, dms = hospitals
    both = [row for dm in dms.values() for row in rows_of(dm, dm.split.test)["row"]]
    pd.DataFrame({"row": both}).to_parquet(folder.path / "predictions" / "test.parquet")
    found = audit_run(folder.path)
    assert alarms(found.findings) == []
    assert sum("rows and their part" in line for line in found.checked) == 5


def test_a_hospital_predicted_by_a_model_that_was_trained_on_it_is_a_leak(
    hospitals: tuple[RunFolder, dict[str, EHRDataModule]],
) -> None:
    folder, dms = hospitals
    wrong = pd.DataFrame(rows_of(dms["A"], dms["B"].split.test))  # as the other's file says
    wrong.to_parquet(folder.path / "predictions" / "test_site_a.parquet")
    found = of(audit_run(folder.path).findings, "predictions")
    assert found[0].evidence["rows"] == len(wrong)
    assert found[0].evidence["trained"] == np.isin(dms["B"].split.test, dms["A"].split.train).sum()


def test_rows_that_one_fold_each_has_not_seen_are_no_leak(
    folder: RunFolder, quiet: dict[str, Any]
) -> None:
    dms = [
        trained(folder, quiet, stage=f"fold{fold}", test_site="C", folds=2, fold=fold)
        for fold in (0, 1)
    ]
    rows = np.concatenate([dm.split.val for dm in dms])
    pd.DataFrame(rows_of(dms[0], rows)).to_parquet(folder.subfolder("predictions") / "val.parquet")
    found = audit_run(folder.path)
    assert alarms(found.findings) == []
    pd.DataFrame(rows_of(dms[0], rows)).to_parquet(folder.path / "predictions" / "test.parquet")
    assert audit_run(folder.path).leaks == 2  # not of the test, and in val too


def test_what_all_folds_have_in_common_is_said_once() -> None:
    odd = Finding("suspicious", "duplicates", "2 rows are equal.")
    coin = [Finding("note", "label shuffle", f"AUROC 0.{n} on held-out rows.") for n in (500, 501)]
    pairs = [(["fold0"], coin[0]), (["fold1", "fold2"], coin[1]), (["fold2"], odd)]
    assert [finding.sentence for finding in grouped(pairs, 3)] == [
        "AUROC 0.500 on held-out rows. (in all 3 stages; numbers of fold0)",
        "2 rows are equal. (in 1 of 3 stages: fold2)",
    ]
    assert grouped([(["fit"], odd)], 1) == [odd]


def test_a_run_that_trained_nothing_is_no_clean_run(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.update(status="failed")
    assert cli.main(["audit", str(folder.path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "there is nothing to judge by (its status is 'failed'): table, split" in said.err
    assert "Finish the run, or audit its table" in said.err


@pytest.mark.parametrize("option", ["--target", "--site", "--out"])
@pytest.mark.parametrize("shuffle", [[], ["--label-shuffle"]])
def test_a_table_option_is_refused_for_a_run(
    option: str, shuffle: list[str], folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(["audit", str(folder.path), option, "x", *shuffle])
    said = capsys.readouterr().err
    assert code == 2
    refused = f"was trained with, and {option} was given. Leave it out"
    assert (refused in said) == (not shuffle or option != "--out")


def test_what_could_not_be_checked_is_said(folder: RunFolder) -> None:
    text = audit_run(folder.path).text()
    assert "could not be checked: table, split and transformers: no checkpoint knows them" in text
    assert "one person under two ids whose values differ" in text


def test_a_table_that_is_gone_or_changed_is_said_and_may_be_given(
    folder: RunFolder, quiet: dict[str, Any], tmp_path: Path
) -> None:
    path, moved = tmp_path / "table.csv", tmp_path / "moved.csv"
    path.write_bytes(ENCOUNTERS.read_bytes())
    trained(folder, quiet, path)
    path.rename(moved)
    assert "the table table.csv is gone" in audit_run(folder.path).unchecked[0]
    assert audit_run(folder.path, csv_path=moved).unchecked == []
    moved.write_text(moved.read_text().replace("P00974", "P99974"))
    unchecked = audit_run(folder.path, csv_path=moved).unchecked
    assert "is no longer the table that was trained on" in unchecked[0]


def test_a_damaged_checkpoint_is_said(folder: RunFolder) -> None:
    (folder.stage_dir("fit") / "last.ckpt").write_bytes(b"no checkpoint")
    assert "stage fit: last.ckpt can't be read" in audit_run(folder.path).unchecked[0]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"needs a run folder .* has none\. `medkit runs"):
        audit_run(tmp_path)


def shuffled(out: Path, *, seed: int = 0, patient: str | None = "patient_id") -> pd.DataFrame:
    path = shuffled_table(ENCOUNTERS, out, target="died", patient=patient, seed=seed)
    return pd.read_csv(path)


def test_shuffled_labels_are_one_per_patient_and_all_else_stays(tmp_path: Path) -> None:
    before, after = pd.read_csv(ENCOUNTERS), shuffled(tmp_path)
    assert after.groupby("patient_id")["died"].nunique().max() == 1
    assert after["died"].mean() == pytest.approx(before["died"].mean(), abs=0.03)
    assert (after["died"] != before["died"]).mean() > 0.1
    pd.testing.assert_frame_equal(after.drop(columns="died"), before.drop(columns="died"))


def test_shuffled_labels_depend_on_the_seed_alone(tmp_path: Path) -> None:
    one, same, other = (shuffled(tmp_path, seed=seed)["died"] for seed in (0, 0, 1))
    assert one.equals(same)
    assert not one.equals(other)


def test_without_patients_each_row_gets_a_label_of_its_own(tmp_path: Path) -> None:
    after = shuffled(tmp_path, patient=None)
    assert after.groupby("patient_id")["died"].nunique().max() == 2


def test_labels_of_a_table_without_the_target_are_not_shuffled(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no column \['dead'\], found .*Give target="):
        shuffled_table(ENCOUNTERS, tmp_path, target="dead", patient=None, seed=0)


def test_a_run_is_run_again_on_a_shuffled_copy_of_its_table(
    folder: RunFolder, tmp_path: Path
) -> None:
    known = {"csv_path": str(ENCOUNTERS), "target": "died", "patient": "patient_id", "lr": 0.1}
    known["truth_path"] = str(ENCOUNTERS.with_name("truth.csv"))  # without the labels: as it is
    folder.update(parameters=known)
    again = shuffled_parameters(folder.path, tmp_path)
    assert again == known | {"csv_path": str(tmp_path / "encounters.csv")}
    assert (pd.read_csv(again["csv_path"])["died"] != pd.read_csv(ENCOUNTERS)["died"]).any()


def test_a_run_without_a_table_is_not_run_on_shuffled_labels(
    folder: RunFolder, tmp_path: Path
) -> None:
    folder.update(parameters={"lr": 0.1})
    with pytest.raises(
        ValueError, match=r"this one has \['lr'\], and no such file.*shuffled_table"
    ):
        shuffled_parameters(folder.path, tmp_path)


@pytest.mark.parametrize(("signal", "severity"), [(0.0, "note"), (1.0, "leak")])
def test_a_run_on_shuffled_labels_is_judged_by_its_predictions(
    folder: RunFolder, signal: float, severity: str
) -> None:
    y = np.arange(400) % 5 == 0
    score = signal * y + np.sin(7919.0 * np.arange(400))  # no order, no generator
    rows = pd.DataFrame({"row": "", "site": "", "y": y.astype(int), "score": score})
    rows.to_parquet(folder.subfolder("predictions") / "val.parquet")
    assert [f.severity for f in judge_shuffled(folder.path)] == [severity]


@pytest.mark.parametrize(("chosen_on", "severity"), [(200, "leak"), (100, "note")])
def test_columns_chosen_on_all_rows_show_on_shuffled_labels(
    folder: RunFolder, tmp_path: Path, chosen_on: int, severity: str
) -> None:
    x = numbers(200, 1000).values
    table = pd.DataFrame(x).add_prefix("gene").assign(died=numbers(200, 1).y)
    table.to_csv(tmp_path / "genes.csv", index=False)
    out = tmp_path / "shuffled"
    out.mkdir()
    path = shuffled_table(tmp_path / "genes.csv", out, target="died", patient=None, seed=0)
    y = pd.read_csv(path)["died"].to_numpy()  # 100 rows to train on, 100 held out
    strength = np.corrcoef(x[:chosen_on].T, y[:chosen_on])[-1, :-1]
    best = np.argsort(-np.abs(strength))[:20]
    score = x[100:][:, best] @ np.sign(strength[best])
    rows = pd.DataFrame({"row": "", "site": "", "y": y[100:], "score": score})
    rows.to_parquet(folder.subfolder("predictions") / "test.parquet")
    assert [f.severity for f in judge_shuffled(folder.path)] == [severity]


def test_a_run_without_predictions_is_not_judged(folder: RunFolder) -> None:
    with pytest.raises(FileNotFoundError, match=r"judged by its predictions.*run\.predictions"):
        judge_shuffled(folder.path)


def test_a_run_on_follow_up_is_audited_too(folder: RunFolder, quiet: dict[str, Any]) -> None:
    patients = ENCOUNTERS.parents[1] / "survival" / "patients.csv"
    dm = SurvivalDataModule(patients, time="days", event="died", site="site", test_site="C")
    dm.setup()
    model = LitCox("medkit.models.nets:mlp", {"inputs": dm.num_features, "hidden": [2]})
    trainer = pl.Trainer(**quiet, max_steps=1, limit_val_batches=0)
    trainer.fit(model, dm)
    trainer.save_checkpoint(folder.stage_dir("fit") / "last.ckpt")
    found = audit_run(folder.path)
    assert found.checked == ["stage fit: patients.csv, 1200 rows, its split and transformers"]
    assert alarms(found.findings) == []


def test_predictions_that_can_not_be_read_do_not_end_an_audit(folder: RunFolder) -> None:
    (folder.subfolder("predictions") / "test.parquet").write_bytes(b"torn")
    pd.DataFrame({"score": [0.5]}).to_parquet(folder.path / "predictions" / "val.parquet")
    said = [line for line in audit_run(folder.path).unchecked if "can't be read" in line]
    assert [line.split()[0] for line in said] == [
        "predictions/test.parquet",
        "predictions/val.parquet",
    ]
