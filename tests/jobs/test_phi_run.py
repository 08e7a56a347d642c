"""Twenty identifiers in headers and paths, and none in any byte of a whole run on those files."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from medkit.dicom.deidentify import deidentify
from medkit.synth.phantom_series import phantom_series, write_series

SAID = {
    "PatientName": "QUASTLER^OTTILIE",
    "PatientID": "MRN-00781234",
    "PatientBirthDate": "19310719",
    "OtherPatientIDs": "OTHERID-4471",
    "PatientAddress": "17 Rosewood Lane",
    "PatientTelephoneNumbers": "+49 30 5550199",
    "PatientComments": "Marzipan baker",
    "Occupation": "Captain Zerbst",
    "AccessionNumber": "ACC20XQ771",
    "ReferringPhysicianName": "VANDERMEER^HUGO",
    "InstitutionName": "St. Isidora Hospital",
    "StationName": "WS-RAD-77Q",
    "DeviceSerialNumber": "SN-QX55831",
    "SeriesDescription": "thorax of Quibbleworth",
    "StudyDate": "20191130",
    "StudyInstanceUID": "1.2.826.0.1.77665544.3.2",
    "ImageComments": "seen by Dr. Ypsilanti",
}
OTHERS = ["private Zwirnowski", "nested Krautheimer", "folder Pumpernickel"]
NOTEBOOK = """\
import numpy as np
import pytorch_lightning as pl
import torch
from medkit.dicom.index import scan
from medkit.record.ledger import Ledger
from medkit.trainer import stable_trainer, start_run

run = start_run(run_dir, seed=seed)
index = scan(csv_path)
run.data(images=index.digest())
(series,) = index.series
volume = series.read()
print(index, series, volume.provenance, volume.notes)


class Lit(pl.LightningModule):
    def __init__(self, **about):
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Linear(20, 1)

    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-9)


lit = Lit(source=series.paths[0], said={n: str(v) for n, v in volume.provenance.items()})
rows = torch.tensor(np.ascontiguousarray(volume.slices[0]))
trainer = stable_trainer(run, name="fit", max_epochs=1, enable_progress_bar=False)
trainer.fit(lit, torch.utils.data.DataLoader(rows, batch_size=8), ckpt_path=run.resume("fit"))
run.metrics({"test/mean": float(volume.array.mean())})
run.ledger.append("looked", action="none", rows=[series.patient], detail=series.paths[0])
run.predictions("test", row_ids=series.paths, y=[0] * 4, score=[0.5] * 4,
                patient_ids=[series.patient] * 4)
1 / (lr > 0)
"""


def plant(folder: Path) -> None:
    """Write a series whose headers and path say all of it."""
    datasets = phantom_series(slices=4)
    for dataset in datasets:
        for name, text in SAID.items():
            setattr(dataset, name, text)
        dataset.private_block(0x0011, "MAKER", create=True).add_new(1, "LO", OTHERS[0])
        item = Dataset()
        item.PersonName = OTHERS[1]
        dataset.CTExposureSequence = Sequence([item])
    write_series(folder / OTHERS[2], datasets)


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    path = tmp_path / "identifiers.txt"
    path.write_text("\n".join([*SAID.values(), *OTHERS]))
    return path


def test_none_of_20_identifiers_is_in_any_byte_of_a_whole_run(
    make, medkit, listed: Path, tmp_path: Path
) -> None:
    assert len(listed.read_text().splitlines()) == 20
    plant(tmp_path / "in")
    deidentify(tmp_path / "in", tmp_path / "images", progress=False)
    make(NOTEBOOK)
    done = medkit("run", "job.ipynb", "-p", "csv_path", "images")
    assert done.code == 0, done.err
    names = {path.name for path in done.run_dir.rglob("*")}
    assert {
        "metrics.json",
        "ledger.jsonl",
        "test.parquet",
        "report.html",
        "notebook.ipynb",
    } <= names
    assert any(name.endswith(".ckpt") for name in names)
    for folder in ("run", "images"):
        said = medkit("doctor", "--phi", tmp_path / folder, "--identifiers", listed)
        assert (said.code, said.out[:26]) == (0, "0 of 20 identifiers found "), said.out


def test_all_20_are_seen_where_the_files_are_as_they_were(
    medkit, listed: Path, tmp_path: Path
) -> None:
    plant(tmp_path / "in")
    said = medkit("doctor", "--phi", tmp_path / "in", "--identifiers", listed)
    assert said.code == 1
    assert "20 of 20 identifiers found" in said.out
