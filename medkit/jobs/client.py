"""The client side of a job: runs the cells, keeps the notebook true, readable and bounded."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from typing import IO, Any

import nbformat
from nbformat import NotebookNode
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NotebookExecutionManager

from medkit.jobs.control import JobControl
from medkit.jobs.kernel import JobKernel
from medkit.jobs.redact import Redactor
from medkit.jobs.streams import StreamBuffer, Terminal
from medkit.record.files import write_text

log = logging.getLogger(__name__)

MAX_OUTPUTS = 500  # of one cell; a stream counts as one
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


class JobStopped(Exception):  # noqa: N818 - asked for, hence no error
    """The job was asked to end, so the next cell is not started."""


class JobManager(NotebookExecutionManager):
    """Execution state of a notebook, as it is."""

    def __init__(self, nb: NotebookNode, **options: Any) -> None:
        super().__init__(nb, **options)
        self.finished = False
        self.save_error: OSError | None = None
        self.before_save: Callable[[], None] = lambda: None
        self.on_cell: Callable[[int], None] = lambda index: None

    def save(self, **kwargs: Any) -> None:
        """Write the notebook whole or not at all; a full disk must not stop the training."""
        self.before_save()
        if self.output_path:
            try:
                write_text(self.output_path, nbformat.writes(self.nb) + "\n")
                self.save_error = None
            except OSError as error:
                if self.save_error is None:  # said once, not at every cell
                    log.warning("the notebook could not be saved, going on: %s", error)
                self.save_error = error
        self.last_save_time = self.now()

    def cell_start(self, cell: NotebookNode, cell_index: int | None = None, **kwargs: Any) -> None:
        """Mark a cell as running."""
        self.on_cell(cell_index or 0)
        super().cell_start(cell, cell_index, **kwargs)

    def notebook_complete(self, **kwargs: Any) -> None:
        """Close the books; cells that were not run stay pending."""
        self.end_time = self.now()
        about = self.nb.metadata.papermill
        about["end_time"] = self.end_time.isoformat()
        about["duration"] = (self.end_time - self.start_time).total_seconds()
        if not self.finished:
            about["exception"] = True
        self.save()
        if self.finished and self.save_error is not None:
            raise self.save_error  # all cells have run, but what they said is not kept


class JobClient(PapermillNotebookClient):
    """Runs the cells; keeps streams readable, outputs bounded and widget state out."""

    clear_before_next_output: bool

    def __init__(
        self,
        manager: JobManager,
        *,
        control: JobControl,
        kernel: JobKernel,
        output_log: IO[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(manager, km=kernel.manager, **options)
        self._control = control
        self._redactor = Redactor(os.environ)
        self._log_file = output_log
        self._log_lines = Terminal()
        self._buffers: dict[int, StreamBuffer] = {}  # by the id of the stream output it fills
        self._cell: NotebookNode | None = None
        self._note: NotebookNode | None = None  # says how many outputs were left out
        self._left_out = 0
        manager.before_save = self._tidy

    def execute(self, **kwargs: Any) -> NotebookNode:
        """Run the notebook in the kernel that the manager handed in has started."""
        self.reset_execution_trackers()
        self.start_new_kernel_client()
        info = self.wait_for_reply(self.kc.kernel_info())
        self.nb.metadata["language_info"] = info["content"]["language_info"]
        self.nb.metadata.pop("widgets", None)
        self.papermill_execute_cells()
        return self.nb

    def papermill_execute_cells(self) -> None:
        """Run cell after cell; whatever ends a cell early is written on that cell."""
        for index, cell in enumerate(self.nb.cells):
            if self._control.stopping and cell.cell_type == "code":
                raise JobStopped
            self._cell, self._buffers, self._note, self._left_out = cell, {}, None, 0
            self.nb_man.cell_start(cell, index)
            try:
                self.execute_cell(cell, index)
            except BaseException as error:
                self.nb_man.cell_exception(cell, cell_index=index, exception=error)
                raise
            finally:
                self._control.cell_ended()
                self._log_text(self._log_lines.finish(), end="\n")
                self.nb_man.cell_complete(cell, cell_index=index)
        self.nb_man.finished = True

    def process_message(self, msg: dict[str, Any], *args: Any) -> NotebookNode | None:
        """Take one message of the kernel."""
        if msg["msg_type"] == "execute_input":
            self._control.cell_runs()
        return super().process_message(msg, *args)

    def handle_comm_msg(self, outs: list[NotebookNode], msg: dict[str, Any], index: int) -> None:
        """Drop widget traffic: what an Output widget captures lands in the cell, as text."""

    def output(
        self, outs: list[NotebookNode], msg: dict[str, Any], display_id: str | None, index: int
    ) -> NotebookNode | None:
        """Add one output to a cell."""
        if self.clear_before_next_output:
            self.clear_output(outs, {"content": {}, "parent_header": {}}, index)
            self.clear_before_next_output = False
        if msg["msg_type"] == "stream":
            text = msg["content"]["text"]
            self._log_text(self._log_lines.feed(text))
            self._buffer(outs, msg["content"]["name"]).append(text)
            return None
        if len(outs) >= MAX_OUTPUTS and msg["msg_type"] != "error":
            self._left_out += 1
            if self._note is None:
                self._note = nbformat.v4.new_output("display_data")
                outs.append(self._note)
            return None
        out = super().output(outs, msg, display_id, index)
        if out is not None and out.output_type == "error":
            self._log_text("\n".join(out.traceback), end="\n")
        return out

    def clear_output(self, outs: list[NotebookNode], msg: dict[str, Any], index: int) -> None:
        """Clear a cell's outputs, or promise to at the next one."""
        super().clear_output(outs, msg, index)
        if not outs:
            self._buffers, self._note, self._left_out = {}, None, 0

    def _buffer(self, outs: list[NotebookNode], name: str) -> StreamBuffer:
        """Return the buffer that a chunk of stream ``name`` belongs to."""
        # stdout and stderr in turns a thousand times over would be as many outputs: join them up
        reach = outs[-1:] if len(outs) < MAX_OUTPUTS // 5 else outs[::-1]
        for out in reach:
            if out.output_type == "stream" and out["name"] == name:
                return self._buffers[id(out)]
        outs.append(nbformat.v4.new_output("stream", name=name, text=""))
        return self._buffers.setdefault(id(outs[-1]), StreamBuffer())

    def _tidy(self) -> None:
        """Bring the running cell's outputs to the form in which they are saved."""
        if self._cell is None or self._cell.cell_type != "code":
            return
        for out in self._cell.outputs:
            if id(out) in self._buffers:
                out["text"] = self._buffers[id(out)].text
            _clean(out, self._redactor)
        if self._note is not None:
            text = f"[{self._left_out:,} more outputs left out: a cell keeps {MAX_OUTPUTS}]"
            self._note["data"] = {"text/plain": text}

    def _log_text(self, text: str, end: str = "") -> None:
        if text and self._log_file is not None:
            self._log_file.write(self._redactor.clean(_COLOUR.sub("", text)) + end)
            self._log_file.flush()


def _clean(out: NotebookNode, redactor: Redactor) -> None:
    """Blot secrets out of one output, and the link to a widget whose state is not kept."""
    for field in {"evalue", "text"} & out.keys():
        out[field] = redactor.clean(out[field])
    if "traceback" in out:
        out["traceback"] = [redactor.clean(line) for line in out["traceback"]]
    data = out.get("data", {})
    data.pop(_WIDGET_VIEW, None)
    for kind, content in data.items():
        if kind.startswith("text/") and isinstance(content, str):
            data[kind] = redactor.clean(content)
