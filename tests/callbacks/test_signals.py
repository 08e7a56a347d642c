"""Asked to stop, a training stops at the next boundary, with a point and never with exit code 0."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks._kills import Kill, differing, in_child, outcome, until_done
from medkit import start
from medkit.record.checkpoints import checkpoint_name, checkpoints
from medkit.record.folder import RunFolder
from medkit.record.ledger import Ledger
from medkit.trainer import start_run
from tests.callbacks.small import BATCHES, Data, Films, Train, training

CODES = [("SIGTERM", 143), ("SIGUSR1", 143), ("SIGINT", 130)]


class At(pl.Callback):
    """Does something once, amid the batch with this number (from 1, over all epochs)."""

    def __init__(self, batch: int, do: Callable[[], object]) -> None:
        self.batch = batch
        self.do = do

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.total.ready == self.batch:
            self.do()


def interrupted(run_dir: Path, do: Callable[[], object], **options: Any) -> int:
    """Train, do that amid the ninth batch, and return the exit code."""
    train = training(callbacks=lambda: [At(9, do)], every=None, **options)
    return ended(lambda: train(run_dir, None), run_dir.with_suffix(".log"))


def ended(work: Callable[[], object], log: Path) -> int:
    """Work in a child that closes its run at the end, as Python does for a script."""

    def closed() -> None:
        try:
            work()
        finally:
            start._at_exit()

    return in_child(closed, log)


def goes_on_to_the_same_bits(run_dir: Path, **options: Any) -> bool:
    train = training(callbacks=lambda: [At(9, int)], every=None, **options)
    whole = run_dir.with_name("whole")
    until_done(train, whole, [])
    until_done(train, run_dir, [])
    return differing(outcome(whole), outcome(run_dir)) == []


def myself(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize(("name", "code"), CODES)
def test_a_signal_ends_the_fit_at_the_next_boundary(name: str, code: int, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert interrupted(run_dir, myself(getattr(signal, name))) == code
    content = RunFolder(run_dir).read()
    assert (content["status"], content["interrupted_by"]) == ("interrupted", name)
    found = checkpoints(run_dir / "checkpoints" / "fit")
    assert [path.name for path in found] == [checkpoint_name(1, 9 - BATCHES)]


def test_and_goes_on_from_there_to_the_same_bits(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    interrupted(run_dir, myself(signal.SIGTERM))
    assert goes_on_to_the_same_bits(run_dir)
    assert RunFolder(run_dir).status == "done"


def test_a_boundary_is_never_amid_an_accumulation(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert interrupted(run_dir, myself(signal.SIGTERM), accumulate_grad_batches=4) == 143
    found = checkpoints(run_dir / "checkpoints" / "fit")
    assert [path.name for path in found] == [checkpoint_name(1, 4)]
    assert goes_on_to_the_same_bits(run_dir, accumulate_grad_batches=4)


def test_a_signal_to_the_whole_group_kills_the_workers_and_loses_nothing(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    data = {"data": lambda: Data(2)}
    assert interrupted(run_dir, lambda: os.killpg(0, signal.SIGTERM), **data) == 143
    assert goes_on_to_the_same_bits(run_dir, **data)


def test_a_signal_in_the_last_batch_leaves_a_finished_stage_and_ends_the_script(
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "run"
    train = training(callbacks=lambda: [At(3 * BATCHES, myself(signal.SIGTERM))])
    assert ended(lambda: train(run_dir, None), tmp_path / "log") == 143
    assert RunFolder(run_dir).read()["stages"]["fit"]["status"] == "done"
    assert RunFolder(run_dir).status == "interrupted"


def test_ctrl_c_twice_stops_at_once(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"

    def twice() -> None:
        myself(signal.SIGINT)()
        myself(signal.SIGINT)()

    assert interrupted(run_dir, twice) == 130
    assert checkpoints(run_dir / "checkpoints" / "fit") == []
    assert goes_on_to_the_same_bits(run_dir)


@pytest.mark.parametrize(("name", "code"), CODES[:2])
def test_outside_a_fit_a_signal_stops_the_run_at_once(name: str, code: int, tmp_path: Path) -> None:
    def work() -> None:
        start_run(tmp_path / "run", seed=1)
        myself(getattr(signal, name))()
        raise AssertionError("the signal was not heard")

    assert ended(work, tmp_path / "log") == code
    assert RunFolder(tmp_path / "run").read()["interrupted_by"] == name


def test_a_killed_run_reads_killed(tmp_path: Path) -> None:
    code = in_child(lambda: training()(tmp_path / "run", Kill("batch_end", 4)), tmp_path / "log")
    assert code == -signal.SIGKILL
    assert RunFolder(tmp_path / "run").status == "killed"


def test_an_error_keeps_the_points_before_it_and_the_mended_run_is_exact(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("a bug")

    def train(do: Callable[[], object]) -> Train:
        return training(callbacks=lambda: [At(9, do)])

    run_dir = tmp_path / "run"
    assert ended(lambda: train(fail)(run_dir, None), tmp_path / "log") == 1
    assert "ValueError: a bug" in (tmp_path / "log").read_text()
    until_done(train(int), run_dir, [])
    until_done(train(int), tmp_path / "whole", [])
    assert differing(outcome(tmp_path / "whole"), outcome(run_dir)) == []


class Deadly(Films):
    """Ends the process that fetches from it, once, when a file says so."""

    def __init__(self, flag: Path) -> None:
        super().__init__()
        self.flag = flag

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        if self.flag.exists():
            self.flag.unlink(missing_ok=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(row)


def test_a_dead_loader_worker_is_replaced_and_the_end_has_the_same_bits(tmp_path: Path) -> None:
    class ToDie(Data):
        def train_dataloader(self) -> Any:
            films = Deadly(tmp_path / "flag")
            return DataLoader(films, batch_size=8, shuffle=True, num_workers=2)

    run_dir = tmp_path / "run"
    assert interrupted(run_dir, (tmp_path / "flag").touch, data=ToDie) == 0
    assert not (tmp_path / "flag").exists()
    [line] = Ledger(run_dir / "ledger.jsonl").read()
    assert (line["event"], line["action"]) == ("loader worker died", "new workers started")
    assert "DataLoader worker" in line["detail"]
    until_done(training(callbacks=lambda: [At(9, int)], every=None, data=ToDie), tmp_path / "w", [])
    assert differing(outcome(tmp_path / "w"), outcome(run_dir)) == []


def test_workers_that_keep_dying_stop_it_and_the_resume_is_exact(tmp_path: Path) -> None:
    class DiesAlways(Deadly):
        def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
            if self.flag.exists() and row == 5:
                os._exit(9)
            return Films.__getitem__(self, row)

    class Ill(Data):
        def train_dataloader(self) -> Any:
            films = DiesAlways(tmp_path / "flag")
            return DataLoader(films, batch_size=8, shuffle=True, num_workers=1)

    train = training(callbacks=lambda: [At(9, (tmp_path / "flag").touch)], data=Ill)
    run_dir = tmp_path / "run"
    assert ended(lambda: train(run_dir, None), tmp_path / "log") == 1
    assert "loader workers must live, but they died 4 times" in (tmp_path / "log").read_text()
    (tmp_path / "flag").unlink()
    train = training(callbacks=lambda: [At(9, int)], data=Ill)
    until_done(train, tmp_path / "whole", [])
    until_done(train, run_dir, [])
    assert differing(outcome(tmp_path / "whole"), outcome(run_dir)) == []


SCRIPT = """
import logging, os, signal, sys
from pathlib import Path
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
from tests.callbacks.small import training
from tests.callbacks.test_signals import At
name = sys.argv[2]
do = (lambda: os.kill(os.getpid(), getattr(signal, name))) if name else int
training(callbacks=lambda: [At(9, do)], every=None)(Path(sys.argv[1]), None)
"""


def test_a_whole_script_ends_with_the_code_of_its_signal(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}

    def begin(run_dir: Path, name: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(script), str(run_dir), name]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    started = {name: begin(tmp_path / name, name) for name, _ in CODES}
    assert {name: process.wait(120) for name, process in started.items()} == dict(CODES)
    assert {RunFolder(tmp_path / name).status for name in started} == {"interrupted"}
    assert begin(tmp_path / "SIGTERM", "").wait(120) == 0
    assert RunFolder(tmp_path / "SIGTERM").status == "done"


def status_after(run_dir: Path, in_the_run: Callable[[], object]) -> dict[str, Any]:
    def work() -> None:
        start_run(run_dir, seed=1)
        in_the_run()

    assert ended(work, run_dir.with_suffix(".log")) == 0
    return RunFolder(run_dir).read()


def end_a_worker() -> None:
    fork = multiprocessing.get_context("fork")
    begun = fork.Event()  # a signal that comes amid the fork is lost, whoever listens

    def work() -> None:
        begun.set()
        time.sleep(60)

    process = fork.Process(target=work)
    process.start()
    assert begun.wait(20)
    process.terminate()
    process.join(20)
    assert process.exitcode == -signal.SIGTERM


def test_a_worker_that_is_ended_is_no_end_of_the_run(tmp_path: Path) -> None:
    facts = status_after(tmp_path / "run", end_a_worker)
    assert (facts["status"], facts.get("interrupted_by")) == ("done", None)


def test_a_forked_child_that_exits_is_no_end_of_the_run(tmp_path: Path) -> None:
    def child() -> None:
        if os.fork() == 0:
            start._at_exit()  # as sys.exit would have it done
            os._exit(0)
        os.wait()
        assert RunFolder(tmp_path / "run").status == "running"

    assert status_after(tmp_path / "run", child)["status"] == "done"


def test_a_worker_of_ones_own_can_be_ended_amid_a_fit(tmp_path: Path) -> None:
    assert interrupted(tmp_path / "run", end_a_worker) == 0
    assert RunFolder(tmp_path / "run").status == "done"
