"""Digests of training steps: written when asked for, alike for alike steps, traced to a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from medkit.callbacks.op_trace import OpTrace
from medkit.callbacks.step_hashes import FILE, HASH_STEPS, TracedEnoughError
from medkit.data.loader import keyed
from medkit.study.certificate_steps import Parting, parting, read_recorded
from medkit.trainer import stable_trainer, start_run

SAMPLES = torch.arange(24.0).reshape(12, 2)


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 1))
        self.added = 0.0

    def training_step(self, batch: tuple[Tensor], batch_idx: int) -> Tensor:
        return (self.net(batch[0]) + self.added).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def fit(
    run_dir: Path, *, seed: int = 0, added: float = 0.0, order: str = "", epochs: int = 2
) -> None:
    run = start_run(run_dir, seed=seed, threads=1)
    samples = SAMPLES.flip(0) if order == "other" else SAMPLES
    with run.init("fit"):
        net = Net()
    net.added = added
    data = keyed(DataLoader(TensorDataset(samples), batch_size=4, shuffle=order != "as it is"))
    options: dict[str, Any] = {"enable_progress_bar": False, "accelerator": "cpu"}
    stable_trainer(run, max_epochs=epochs, **options).fit(net, data)
    run.finish()


def lines_of(run_dir: Path) -> list[dict[str, Any]]:
    text = (run_dir / "logs" / "fit" / FILE).read_text()
    return [json.loads(line) for line in text.splitlines()]


def parted(a: Path, b: Path) -> Parting | None:
    return parting(read_recorded(a), read_recorded(b))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HASH_STEPS, "1")


def test_nothing_is_digested_unless_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(HASH_STEPS, raising=False)
    fit(tmp_path / "run")
    assert not (tmp_path / "run" / "logs" / "fit" / FILE).exists()


@pytest.mark.usefixtures("asked")
def test_the_same_training_leaves_the_same_digests(tmp_path: Path) -> None:
    fit(tmp_path / "a")
    torch.rand(7)
    fit(tmp_path / "b")
    assert lines_of(tmp_path / "a") == lines_of(tmp_path / "b")
    assert [line["place"] for line in lines_of(tmp_path / "a")] == [
        *("start", "0/0", "0/1", "0/2", "1/0", "1/1", "1/2"),
    ]


@pytest.mark.usefixtures("asked")
def test_digests_are_of_what_they_say(tmp_path: Path) -> None:
    fit(tmp_path / "a")
    fit(tmp_path / "seed", seed=1)
    fit(tmp_path / "added", added=1e-3)
    fit(tmp_path / "order", order="other")
    found = {name: parted(tmp_path / "a", tmp_path / name) for name in ("seed", "added", "order")}
    fields = {name: at.field for name, at in found.items() if at is not None}
    assert fields == {"seed": "initial weights", "added": "loss", "order": "batch"}
    assert found["order"] is not None
    assert found["order"].same_samples


@pytest.mark.usefixtures("asked")
def test_digests_leave_the_training_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(tmp_path / "with")
    monkeypatch.setenv(HASH_STEPS, "")
    fit(tmp_path / "without")
    runs = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("with", "without")]
    assert runs[0]["weights_sha256"] == runs[1]["weights_sha256"]


def test_traced_steps_hold_their_operations_and_end_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HASH_STEPS, "fit:1:3")
    with pytest.raises(TracedEnoughError):
        fit(tmp_path / "run")
    lines = {line["place"]: line for line in lines_of(tmp_path / "run")}
    assert ["ops" in lines[place] for place in ("0/0", "0/1", "0/2")] == [False, True, True]
    assert "1/0" not in lines
    assert len({*lines["0/1"]["again"]}) == 1
    phases = [op["phase"] for op in lines["0/1"]["ops"]]
    assert phases == sorted(phases, key=("forward", "backward", "optimizer").index)
    mask = next(op for op in lines["0/1"]["ops"] if op["name"].startswith("aten.bernoulli_"))
    assert mask["draws"]
    assert mask["module"] == "net.2 (Dropout)"
    assert "return (self.net(batch[0])" in mask["line"]


def test_traced_steps_are_those_of_an_untraced_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HASH_STEPS, "1")
    fit(tmp_path / "whole")
    monkeypatch.setenv(HASH_STEPS, "fit:0:9")
    fit(tmp_path / "traced")
    assert parted(tmp_path / "whole", tmp_path / "traced") is None


def test_a_backward_operation_has_the_module_of_its_forward_one() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.AvgPool2d(2))
    trace = OpTrace(net)
    with trace.watching():
        net(torch.randn(2, 1, 6, 6)).sum().backward()
    modules = {op["name"].split(".")[1]: op["module"] for op in trace.ops}
    assert modules["convolution_backward"] == "0 (Conv2d)"
    assert modules["native_batch_norm_backward"] == "1 (BatchNorm2d)"
    assert modules["avg_pool2d_backward"] == "2 (AvgPool2d)"


def test_memory_that_nobody_wrote_is_seen_where_it_is_read() -> None:
    trace = OpTrace(nn.Identity())
    with trace.watching():
        torch.empty(4).view(2, 2).add(1)
        torch.empty(4).fill_(1).add(1)
        torch.empty(4).add_(1)
    told = [(op["name"], op["unwritten"]) for op in trace.ops]
    assert [name for name, unwritten in told if unwritten] == [
        "aten.add.Tensor",
        "aten.add_.Tensor",
    ]


def test_a_module_that_fails_leaves_no_hooks_behind() -> None:
    trace = OpTrace(nn.Identity())
    with pytest.raises(RuntimeError), trace.watching():
        nn.Linear(2, 1)(torch.zeros(3, 3))
    count = len(trace.ops)
    nn.Identity()(torch.zeros(1)).add(1)
    assert len(trace.ops) == count
