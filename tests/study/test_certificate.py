"""A certificate: what two processes wrote of their steps, where they part and what is to blame."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nbformat
import pytest

from medkit.callbacks.step_hashes import FILE, HASH_STEPS
from medkit.cli import main
from medkit.jobs.notebook import UsageError
from medkit.jobs.plan import Request
from medkit.record.files import write_json
from medkit.record.folder import RunFolder
from medkit.study import certificate_verdict as blame
from medkit.study.certificate import JobFailedError, certify
from medkit.study.certificate_command import certify_command, contents
from medkit.study.certificate_steps import parting, read_recorded
from medkit.study.certificate_verdict import judge

Lines = list[dict[str, Any]]
OP = {"name": "aten.mul.Tensor", "phase": "forward", "module": "net.0 (Linear)", "line": "a.py:1"}
OP |= {"took": "1", "gave": "2", "draws": False, "unwritten": False}


def lines(epochs: int = 2, batches: int = 3, **changed: Any) -> Lines:
    """Return what a run writes; ``changed`` sets fields of the second batch of the second epoch."""
    found: Lines = [{"place": "start", "weights": {"a": "1", "b": "2"}, "threads": 1}]
    for epoch in range(epochs):
        for batch in range(batches):
            place = f"{epoch}/{batch}"
            line = {name: f"{name} {place}" for name in ("rows", "batch", "loss", "gradients")}
            line |= {name: f"{name} {place}" for name in ("buffers", "weights", "optimizer", "bag")}
            found.append({"place": place, "threads": 1, **line})
    found[5] |= changed
    return found


def write(run_dir: Path, what: Lines, stage: str = "fit", **facts: Any) -> Path:
    """Write a run folder with these lines."""
    if not (run_dir / "run.json").exists():
        RunFolder.create(run_dir, seed=0, **facts)
    folder = run_dir / "logs" / stage
    folder.mkdir(parents=True)
    (folder / FILE).write_text("".join(json.dumps(line) + "\n" for line in what))
    return run_dir


def judged(tmp_path: Path, a: Lines, b: Lines, **facts: Any) -> blame.Verdict:
    """Judge two runs; ``facts`` are the second's run.json."""
    write(tmp_path / "a", a, environment={"torch": "1"}, hardware_class={"threads": 1})
    was = {"environment": {"torch": "1"}, "hardware_class": {"threads": 1}}
    write(tmp_path / "b", b, **(was | facts))
    return judge(read_recorded(tmp_path / "a"), read_recorded(tmp_path / "b"))


def test_equal_steps_are_equal(tmp_path: Path) -> None:
    assert judged(tmp_path, lines(), lines()).equal


@pytest.mark.parametrize(
    ("changed", "component"),
    [
        ({"rows": "x", "batch": "x", "loss": "x"}, blame.ORDER),
        ({"batch": "x", "loss": "x"}, blame.ORDER),
        ({"loss": "x", "gradients": "x"}, blame.DRAWS),
        ({"gradients": "x", "weights": "x"}, blame.BACKWARD_OP),
        ({"weights": "x"}, blame.STEPPER),
        ({"optimizer": "x"}, blame.STEPPER),
        ({"gradients": "x", "threads": 2}, blame.THREADS),
        ({"loss": "x", "weights before": "x"}, blame.BETWEEN),
    ],
)
def test_the_first_field_that_differs_names_the_component(
    tmp_path: Path, changed: dict[str, Any], component: str
) -> None:
    found = judged(tmp_path, lines(), lines(**changed))
    assert (found.component, found.place) == (component, "1/1")


def test_other_samples_by_the_end_of_an_epoch_are_augmentation(tmp_path: Path) -> None:
    other = lines(batch="x")
    other[-1]["bag"] = "other samples"
    assert judged(tmp_path, lines(), other).component == blame.AUGMENTATION


def test_samples_that_each_process_fetches_alike_again_were_made_unlike(tmp_path: Path) -> None:
    a, b = lines(again=["1", "1"]), lines(batch="x", again=["2", "2"])
    b[-1]["bag"] = "other samples"
    assert judged(tmp_path, a, b).component == blame.SETUP


def test_initial_weights_are_named(tmp_path: Path) -> None:
    other = lines()
    other[0]["weights"] = {"a": "1", "b": "3"}
    found = judged(tmp_path, lines(), other)
    assert (found.component, found.where) == (blame.INIT, "b")


def test_a_run_that_trains_on_is_said_to(tmp_path: Path) -> None:
    found = judged(tmp_path, lines(), lines()[:-1])
    assert (found.component, found.place) == (blame.LENGTH, "1/2")


def test_other_versions_are_blamed_before_what_they_changed(tmp_path: Path) -> None:
    found = judged(tmp_path, lines(), lines(loss="x"), environment={"torch": "2"})
    assert found.component == blame.ENVIRONMENT
    assert "environment.torch was '1', is '2'" in found.why


def test_results_that_differ_after_equal_steps_are_after_training(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_json(write(tmp_path / name, lines()) / "metrics.json", {"val/auroc": name})
    found = judge(read_recorded(tmp_path / "a"), read_recorded(tmp_path / "b"))
    assert (found.component, found.differs) == (blame.AFTER, "metrics.json")


def test_a_step_lived_through_again_counts_as_it_was_last(tmp_path: Path) -> None:
    killed = [*lines()[:4], {"place": "0/2", "loss": "of a life that was lost"}, *lines()[3:]]
    assert judged(tmp_path, lines(), killed).equal


def test_a_line_torn_by_a_kill_is_passed_over(tmp_path: Path) -> None:
    a, b = (write(tmp_path / name, lines()) for name in ("a", "b"))
    with (b / "logs" / "fit" / FILE).open("a") as file:
        file.write('{"place": "2/0", "lo')
    assert parting(read_recorded(a), read_recorded(b)) is None


def test_runs_in_folders_with_random_names_are_paired(tmp_path: Path) -> None:
    for name, random in (("a", "tmp12"), ("b", "tmp77")):
        write(tmp_path / name, lines())
        write(tmp_path / name / random, lines(loss=random))
    found = parting(read_recorded(tmp_path / "a"), read_recorded(tmp_path / "b"))
    assert found is not None
    assert found.stage == "tmp12/fit"


@pytest.mark.parametrize(
    ("a", "b", "component"),
    [
        ({"gave": "x"}, {}, blame.FORWARD_OP),
        ({"gave": "x", "phase": "backward"}, {"phase": "backward"}, blame.BACKWARD_OP),
        ({"gave": "x", "draws": True}, {"draws": True}, blame.DRAWS),
        ({"took": "x", "gave": "x"}, {}, blame.DRAWS),
        ({"gave": "x", "unwritten": True}, {"unwritten": True}, blame.UNWRITTEN),
        ({"took": "x", "phase": "optimizer"}, {"phase": "optimizer"}, blame.STEPPER),
        ({"name": "aten.add.Tensor"}, {}, blame.DRAWS),
    ],
)
def test_the_first_operation_that_came_out_otherwise_is_named(
    a: dict[str, Any], b: dict[str, Any], component: str
) -> None:
    found = blame.first_op([OP, OP | a, OP | {"gave": "y"}], [OP, OP | b, OP])
    assert found is not None
    assert (found[0], found[2]) == (component, "net.0 (Linear); a.py:1")


def test_equal_operations_blame_nothing() -> None:
    assert blame.first_op([OP, OP], [OP, OP]) is None


def job_of(differing: Callable[[], dict[str, Any]]) -> Any:
    """Return a job whose fifth step holds what ``differing`` gives, and its operation when asked.

    ``loss`` differs from process to process by the hash seed.
    """

    def job(folder: Path, more: Mapping[str, str]) -> None:
        seed = more["PYTHONHASHSEED"]
        changed = {name: f"{value} {seed}" for name, value in differing().items()}
        if more[HASH_STEPS] != "1":
            assert more[HASH_STEPS] == "fit:0:15"
            changed["ops"] = [OP | {"gave": seed}]
        write(folder, lines(**changed))

    return job


def test_two_processes_that_part_are_run_again_and_the_operation_is_named() -> None:
    found = certify(job_of(lambda: {"loss": "x"}))
    assert found.verdict.component == blame.FORWARD_OP
    assert found.verdict.where == "net.0 (Linear); a.py:1"
    assert found.hash_seeds == ["0", "1"]


def test_memory_read_unwritten_is_blamed_though_being_watched_makes_it_alike() -> None:
    def job(folder: Path, more: Mapping[str, str]) -> None:
        hashed = more[HASH_STEPS] == "1"
        changed = (
            {"loss": more["PYTHONHASHSEED"]} if hashed else {"ops": [OP | {"unwritten": True}]}
        )
        write(folder, lines(**changed))

    assert certify(job).verdict.component == blame.UNWRITTEN


def test_a_job_that_repeats_is_certified(tmp_path: Path) -> None:
    found = certify(job_of(dict))
    assert found.verdict.equal
    content = contents(found)
    assert content["processes"][0] == content["processes"][1]
    assert content["processes"][0]["stages"]["fit"]["steps"] == 6


def test_a_finished_run_with_digests_needs_one_more_process(tmp_path: Path) -> None:
    old = write(tmp_path / "old", lines(loss="x 0"))
    assert not certify(job_of(lambda: {"loss": "x"}), repeats=1, finished=old).verdict.equal
    assert certify(job_of(dict), repeats=1, finished=write(tmp_path / "o", lines())).verdict.equal


def test_a_job_that_does_not_repeat_is_blamed_before_the_versions_of_a_finished_run(
    tmp_path: Path,
) -> None:
    old = write(tmp_path / "old", lines(loss="x"), environment={"torch": "0"})
    assert certify(job_of(lambda: {"loss": "x"}), finished=old).verdict.where
    assert certify(job_of(dict), finished=old).verdict.differs == "loss"


def test_a_finished_run_without_digests_is_compared_at_its_end(tmp_path: Path) -> None:
    old = tmp_path / "old"
    RunFolder.create(old, seed=0)
    write_json(old / "metrics.json", {"val/auroc": 0.5})
    found = certify(job_of(dict), finished=old)
    assert found.verdict.differs == "metrics.json"
    assert "no digests of its steps" in found.notes[0]


def test_one_process_alone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 2 processes.*repeats=1.*Give --repeats 2"):
        certify(job_of(dict), repeats=1)


def test_a_job_that_leaves_nothing_is_refused() -> None:
    def job(folder: Path, more: Mapping[str, str]) -> None:
        folder.mkdir()

    with pytest.raises(ValueError, match=r"left neither. Train by stable_trainer"):
        certify(job)


def test_a_job_that_fails_is_no_difference() -> None:
    def job(folder: Path, more: Mapping[str, str]) -> None:
        raise JobFailedError("it failed")

    with pytest.raises(JobFailedError, match="it failed"):
        certify(job)


def test_a_certificate_that_was_changed_is_found_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "certificate.json"
    content = contents(certify(job_of(lambda: {"loss": "x"})))
    write_json(path, content | {"equal": True})
    assert main(["certify", "--verify", str(path)]) == 1
    assert "was changed" in capsys.readouterr().out
    write_json(path, content)
    assert main(["certify", "--verify", str(path)]) == 1
    assert "is as it was written" in capsys.readouterr().out


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must be a notebook or a run folder; it holds no run"):
        certify_command(str(tmp_path), Request(""), repeats=2)


def test_a_script_s_run_is_refused(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "r", notebook="train.py", status="done")
    with pytest.raises(UsageError, match=r"was a notebook's; this one of train.py is 'done'"):
        certify_command(str(tmp_path / "r"), Request(""), repeats=2)


def test_nothing_to_certify_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certify"]) == 2
    assert "takes a notebook or a run folder" in capsys.readouterr().err


NOTEBOOK = """import torch, pytorch_lightning as pl
from torch.utils.data import DataLoader, TensorDataset
from medkit.trainer import keyed, stable_trainer, start_run
import os
run = start_run(run_dir, seed=seed, quick=quick, threads=1)
class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(2, 1)
    def training_step(self, batch, batch_idx):
        noise = os.urandom(1)[0] / 256 if noisy else 0.0
        return (self.net(batch[0]) + noise).square().mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
with run.init("fit"):
    net = Net()
data = keyed(DataLoader(TensorDataset(torch.ones(8, 2)), batch_size=4, shuffle=True))
trainer = stable_trainer(run, max_epochs=1, enable_progress_bar=False)
trainer.fit(net, data, ckpt_path=run.resume("fit"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("noisy", [False, True])
def test_a_notebook_is_certified_from_the_command_line(
    tmp_path: Path,
    noisy: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parameters = "seed: int = 0  # s\nnoisy: bool = False  # n\nquick: bool = False  # q\n"
    parameters += 'run_dir: str = ""  # d\n'
    book = nbformat.v4.new_notebook()
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    book.cells = [first, nbformat.v4.new_code_cell(NOTEBOOK)]
    nbformat.write(book, tmp_path / "n.ipynb")
    monkeypatch.chdir(tmp_path)
    code = main(["certify", "n.ipynb", "-p", "noisy", str(noisy)])
    out = capsys.readouterr().out
    assert code == int(noisy), out
    assert ("draws in the step" in out and "noise" in out) if noisy else "equal bit for bit" in out
    content = json.loads((tmp_path / "n.certificate.json").read_text())
    assert content["parameters"]["noisy"] is noisy
    assert sys.version.split()[0] in content["words"]
