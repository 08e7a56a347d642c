"""What the kernel process of a job runs: IPython's kernel, watched, and losing no output.

Run by path, so that nothing but the standard library and ipykernel need be importable in it.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

_HERE = str(Path(__file__).parent)
if __name__ == "__main__" and sys.path[0] == _HERE:
    del sys.path[0]  # its modules would hide others of the same name

from ipykernel.kernelapp import IPKernelApp  # noqa: E402 - after the path is put right


class JobKernelApp(IPKernelApp):
    """Queues all that is printed until the launcher has taken it.

    By default a sender whose receiver is 1,000 messages behind (a busy machine, a stopped launcher)
    drops what comes next. A cell that prints quickly then never seems to end, since the message
    that says so is among them. The receiving side is ``kernel.PatientKernelManager``.
    """

    def init_iopub(self, context: Any) -> None:
        """Open the socket of outputs with a queue that has no limit."""
        context.sndhwm = 0  # a limit set after the socket is bound does not count
        super().init_iopub(context)


if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).with_name("watch.py")))["watch_launcher"]()
    JobKernelApp.launch_instance()
