"""papermill at work: parameters in, cells run, and what came of it as plain facts."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from papermill.engines import papermill_engines
from papermill.execute import prepare_notebook_metadata, remove_error_markers
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from medkit.jobs.client import JobStopped
from medkit.jobs.control import JobControl
from medkit.jobs.engine import ENGINE_NAME
from medkit.jobs.kernel import JobKernel
from medkit.jobs.redact import Redactor


@dataclass(frozen=True)
class Job:
    """What the engine needs to run a notebook once."""

    notebook: Path
    output: Path
    parameters: dict[str, Any]
    environment: dict[str, str]
    pass_fds: tuple[int, ...]
    logs: Path


@dataclass(frozen=True)
class Result:
    """What came of it.

    Attributes:
        kind: ``done``, ``error``, ``dead``, ``timeout`` or ``stopped``.
        name: Type of the exception of a cell.
        message: Its text.
        cell: The code cell it ended in, counted from 1 as the notebook's reader does.
        exit_status: Of a dead kernel; negative for a signal.
    """

    kind: str
    name: str = ""
    message: str = ""
    cell: int = 0
    exit_status: int | None = None


def execute(job: Job, control: JobControl, *, on_cell: Callable[[int], None]) -> Result:
    """Run the notebook; only a fault of the launcher itself raises."""
    # not papermill.execute_notebook: it reads braces in a path as a template, picks the kernel by
    # the name in the notebook, and calls a tagged, expected exception a failure
    nb = load_notebook_node(str(job.notebook))
    nb = parameterize_notebook(
        nb, job.parameters, kernel_name="python3", language="python", engine_name=ENGINE_NAME
    )
    nb = prepare_notebook_metadata(nb, str(job.notebook), str(job.output))
    nb = remove_error_markers(nb)
    number = {"cell": 0}
    code_number = _count_code(nb.cells)

    def at(index: int) -> None:
        number["cell"] = code_number[index]
        on_cell(number["cell"])

    kernel = JobKernel()
    with (
        (job.logs / "kernel.log").open("ab") as kernel_log,
        (job.logs / "output.log").open("a", encoding="utf-8", errors="replace") as output_log,
    ):
        try:
            papermill_engines.execute_notebook_with_engine(
                ENGINE_NAME,
                nb,
                kernel_name="python3",
                output_path=str(job.output),
                control=control,
                kernel=kernel,
                cwd=job.notebook.parent,
                environment=job.environment,
                pass_fds=job.pass_fds,
                kernel_log=kernel_log,
                output_log=output_log,
                on_cell=at,
            )
        except JobStopped:
            return Result("stopped", cell=number["cell"])
        except CellExecutionError as error:
            return Result("error", error.ename, _short(error.evalue), number["cell"])
        except DeadKernelError:
            return Result("dead", cell=number["cell"], exit_status=kernel.exit_status)
        except CellTimeoutError as error:
            return Result("timeout", "CellTimeoutError", _short(str(error)), number["cell"])
        except RuntimeError as error:  # what the client raises when a kernel dies while starting
            if kernel.exit_status is None:
                raise
            return Result("dead", "", _short(str(error)), 0, kernel.exit_status)
    return Result("done", cell=number["cell"])


def _count_code(cells: list[Any]) -> list[int]:
    """Number the code cells from 1; the injected one is not the reader's and has no number."""
    numbers, count = [], 0
    for cell in cells:
        injected = "injected-parameters" in cell.metadata.get("tags", [])
        count += cell.cell_type == "code" and not injected
        numbers.append(count)
    return numbers


def _short(text: str, limit: int = 500) -> str:
    text = Redactor(os.environ).clean(text)  # it goes into run.json and the report
    return text if len(text) <= limit else text[:limit] + " ..."
