"""papermill's engine, made to tell the truth.

Stock papermill 2.7 marks every cell ``completed`` after a killed kernel, a cell timeout or a
Ctrl-C, stores the state of widgets (which may hold a patient's images) whatever one asks, and keeps
each refresh of a progress bar. This engine marks the cell that failed and leaves those after it
pending, saves the notebook whole or not at all, and bounds what it keeps.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from nbformat import NotebookNode
from papermill.engines import NBClientEngine, papermill_engines

from medkit.jobs.client import JobClient, JobManager
from medkit.jobs.control import JobControl
from medkit.jobs.kernel import JobKernel

ENGINE_NAME = "medkit"
_quiet = logging.getLogger(f"{__name__}.client")  # the launcher says it better
_quiet.setLevel(logging.CRITICAL + 1)


class JobEngine(NBClientEngine):
    """The engine that papermill knows as ``medkit`` once this module is imported."""

    @classmethod
    def execute_notebook(
        cls,
        nb: NotebookNode,
        kernel_name: str,
        output_path: str | None = None,
        progress_bar: bool = False,
        log_output: bool = False,
        autosave_cell_every: int = 30,
        on_cell: Callable[[int], None] | None = None,
        **kwargs: Any,
    ) -> NotebookNode:
        """Execute ``nb``; an exception leaves it saved and truthful, and goes on to the caller."""
        manager = JobManager(
            nb,
            output_path=output_path,
            progress_bar=False,
            autosave_cell_every=autosave_cell_every,
        )
        manager.on_cell = on_cell or manager.on_cell
        manager.notebook_start()
        try:
            cls.execute_managed_notebook(manager, kernel_name, **kwargs)
        finally:
            manager.notebook_complete()
        return manager.nb

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: JobManager,
        kernel_name: str,
        *,
        control: JobControl | None = None,
        kernel: JobKernel | None = None,
        cwd: Path | None = None,
        environment: dict[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
        kernel_log: IO[bytes] | None = None,
        output_log: IO[str] | None = None,
        start_timeout: int = 300,
        execution_timeout: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Start a kernel, run the cells in it, and end it whatever happens."""
        control, kernel = control or JobControl(), kernel or JobKernel()
        try:
            with open(os.devnull, "wb") as nowhere:
                pid = kernel.start(
                    cwd=cwd or Path.cwd(),
                    environment=environment if environment is not None else dict(os.environ),
                    log=kernel_log or nowhere,
                    pass_fds=pass_fds,
                )
            control.kernel_started(pid)
            client = JobClient(
                nb_man,
                control=control,
                kernel=kernel,
                output_log=output_log,
                timeout=execution_timeout,
                startup_timeout=start_timeout,
                iopub_timeout=60,  # a busy machine is not an error
                log=_quiet,
            )
            try:
                client.execute()
            finally:
                if client.kc is not None:
                    client.kc.stop_channels()
        finally:
            kernel.shut_down()
            control.kernel_ended()


papermill_engines.register(ENGINE_NAME, JobEngine)
