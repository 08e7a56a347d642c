from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch

from medkit.data.contract.proposal import audit_csv, propose
from medkit.data.contract.schema import Contract
from medkit.data.ehr import EHRDataModule

CSV = Path(__file__).parents[2] / "data_samples" / "ehr" / "encounters.csv"


def make(csv: Path = CSV, **others: Any) -> EHRDataModule:
    return EHRDataModule(csv, target="died", site="site", **others)


def test_a_module_reads_by_the_contract_what_medkit_audit_proposed(tmp_path: Path) -> None:
    path = tmp_path / "contract.yaml"
    audit_csv(CSV, path)
    dm = make(contract=path)
    dm.setup()
    assert dm.table is not None
    frame, broken = Contract.from_yaml(path).apply(pd.read_csv(CSV))
    np.testing.assert_array_equal(
        dm.table.values, frame[list(dm.table.features)].to_numpy(np.float32)
    )
    assert sum(b.count for b in dm.table.broken) == sum(b.count for b in broken)


def test_the_contract_travels_in_the_checkpoint_in_plain_types(tmp_path: Path) -> None:
    contract = propose(CSV)
    dm = make(contract=contract)
    dm.setup()
    checkpoint = {
        **{"state_dict": {}, "pytorch-lightning_version": pl.__version__},
        "datamodule_hyper_parameters": dict(dm.hparams),
        "EHRDataModule": dm.state_dict(),
    }
    path = tmp_path / "a.ckpt"
    torch.save(checkpoint, path)
    stored = torch.load(path, weights_only=True)
    again = make(contract=stored["datamodule_hyper_parameters"]["contract"])
    assert again.contract == contract
    again.load_state_dict(stored["EHRDataModule"])
    new = pd.read_csv(CSV).drop(columns=["died", "patient_id"]).iloc[:50]
    assert torch.equal(again.apply(new).x, dm.apply(new).x)


def test_another_contract_is_refused_on_resume() -> None:
    dm = make(contract=propose(CSV))
    dm.setup()
    for other in (make(), make(contract={**propose(CSV).to_mapping(), "tolerance": 0.9})):
        with pytest.raises(ValueError, match=r"the data contract it was trained under; its digest"):
            other.load_state_dict(dm.state_dict())


def test_roles_that_contradict_the_contract_are_refused() -> None:
    dm = make(contract=propose(CSV), patient=None)
    with pytest.raises(ValueError, match=r"the same patient; the contract says 'patient_id'"):
        dm.setup()
