"""What a person does in JupyterLab: a cell run twice, a run begun again, Stop and go on.

The cells are those of notebook 01, run in a real kernel; the interrupt is the signal that the
Stop button sends.
"""

from __future__ import annotations

import ast
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "01_first_training.ipynb"
BEFORE_THE_FIT = ("look-code", "module-code", "first-fit", "repair", "lr-code")
TIMEOUT_S = 120.0


@dataclass
class Reply:
    """How a cell ended: the name and text of its error (empty for a good end), what it showed."""

    error: str
    message: str
    shown: list[dict[str, Any]]


class Lab:
    """A kernel, and the cells of a notebook to run in it."""

    def __init__(self, folder: Path) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MEDKIT_")}
        environment |= {"PYTHONPATH": str(ROOT), "MEDKIT_KEY_FILE": str(folder / "pseudonym.key")}
        self.manager, self.client = start_new_kernel(
            kernel_name="python3", cwd=str(folder), env=environment
        )
        nb = nbformat.read(NOTEBOOK, as_version=4)
        self.cells = {cell.id: cell.source for cell in nb.cells if cell.cell_type == "code"}

    def send(self, code: str) -> str:
        return str(self.client.execute(code))

    def wait(self, request: str) -> Reply:
        """Wait for the end of a cell."""
        shown: list[dict[str, Any]] = []
        end = time.monotonic() + TIMEOUT_S
        while True:
            try:
                message = self.client.get_iopub_msg(timeout=end - time.monotonic())
            except Empty:
                pytest.fail(f"the cell has not ended after {TIMEOUT_S} s")
            if message["parent_header"].get("msg_id") != request:
                continue
            content = message["content"]
            if message["msg_type"] in {"display_data", "execute_result", "update_display_data"}:
                shown.append(content["data"])
            if message["msg_type"] == "status" and content["execution_state"] == "idle":
                break
        reply = self.client.get_shell_msg(timeout=TIMEOUT_S)["content"]
        return Reply(reply.get("ename", ""), str(reply.get("evalue", "")), shown)

    def run(self, code: str) -> Reply:
        """Run a cell, given by its id or as code."""
        return self.wait(self.send(self.cells.get(code, code)))

    def value(self, expression: str) -> Any:
        """Evaluate an expression in the kernel."""
        request = self.client.execute("", user_expressions={"value": expression})
        reply = None
        while reply is None:
            message = self.client.get_shell_msg(timeout=TIMEOUT_S)
            if message["parent_header"].get("msg_id") == request:
                reply = message["content"]["user_expressions"]["value"]
        return ast.literal_eval(reply["data"]["text/plain"])

    def begin(self, *, epochs: int) -> Path:
        """Run the start_run cell and those up to the fit; return the run folder."""
        parameters = self.cells["parameters"].replace("../data_samples", f"{ROOT}/data_samples")
        # a rate at which the loss falls until the end, so that nothing stops early
        self.run(f"{parameters}\nmax_epochs, lr, quick = {epochs}, 1e-4, False")
        reply = self.run("setup")
        assert reply.error == "", reply.message
        for cell in BEFORE_THE_FIT:
            reply = self.run(cell)
            assert reply.error == "", reply.message
        return Path(self.value("str(run.dir)"))

    def weights(self) -> str:
        code = "from medkit.trainer import weights_digest\nweights_digest(model.state_dict())"
        self.run(code)
        return str(self.value("weights_digest(model.state_dict())"))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.client.stop_channels()
    lab.manager.shutdown_kernel(now=True)


def facts(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "run.json").read_text())


def test_a_finished_stage_fitted_again_is_an_error_that_says_what_to_do(lab: Lab) -> None:
    lab.begin(epochs=1)
    assert lab.run("fit-code").error == ""
    again = lab.run("fit-code")
    assert again.error == "StageFinishedError"
    assert "is finished. Run the start_run cell again for a new run" in again.message


def test_the_start_run_cell_begins_a_new_run_each_time(lab: Lab) -> None:
    first = lab.begin(epochs=1)
    assert lab.run("fit-code").error == ""
    weights = lab.weights()
    second = lab.begin(epochs=1)
    assert second != first
    assert facts(first)["status"] == "done"
    assert lab.run("fit-code").error == ""
    assert lab.weights() == weights


def test_stop_in_the_middle_of_a_fit_and_going_on_changes_no_bit(lab: Lab) -> None:
    epochs = 60
    lab.begin(epochs=epochs)
    assert lab.run("fit-code").error == ""
    undisturbed, steps = lab.weights(), lab.value("trainer.global_step")

    run_dir = lab.begin(epochs=epochs)
    pid = lab.value("__import__('os').getpid()")
    request = lab.send(lab.cells["fit-code"])
    progress = run_dir / "logs" / "progress.json"
    end = time.monotonic() + TIMEOUT_S
    while not progress.exists():  # it is written at the first step
        assert time.monotonic() < end, "the fit has not begun"
        time.sleep(0.01)
    time.sleep(0.1)
    lab.manager.interrupt_kernel()
    stopped = lab.wait(request)
    assert stopped.error == "TrainingInterrupted"
    assert "run the same fit again to go on" in stopped.message
    assert 0 < lab.value("trainer.global_step") < steps
    assert facts(run_dir)["interrupted_by"] == "SIGINT"

    assert lab.run("fit-code").error == ""
    assert lab.value("trainer.global_step") == steps
    assert lab.weights() == undisturbed
    assert lab.value("__import__('os').getpid()") == pid
    lab.run("run.finish()")
    assert facts(run_dir)["status"] == "done"
    assert facts(run_dir)["exact"] is True


def test_the_live_monitor_gives_way_to_a_picture(lab: Lab) -> None:
    lab.begin(epochs=2)
    lab.run("from ipywidgets.widgets.widget import _instances as open_widgets")
    before = lab.value("len(open_widgets)")
    live, picture = lab.run("fit-code").shown
    assert "application/vnd.jupyter.widget-view+json" in live
    assert set(picture) == {"image/png", "text/plain"}
    assert lab.value("len(open_widgets)") == before
