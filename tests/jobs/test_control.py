"""A signal to the launcher is acknowledged at once, once."""

from __future__ import annotations

import signal

import pytest

from medkit.jobs.control import JobControl

STOPPING = "medkit: stopping at the next step boundary"


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGINT, f"{STOPPING}; press Ctrl-C again to kill the kernel\n"),
        (signal.SIGTERM, f"{STOPPING}\n"),
        (signal.SIGUSR1, f"{STOPPING}\n"),
    ],
)
def test_the_first_signal_is_acknowledged_at_once_and_once(
    capfd: pytest.CaptureFixture[str], number: signal.Signals, said: str
) -> None:
    with JobControl().listening():
        signal.raise_signal(number)
        assert capfd.readouterr().err == said
        signal.raise_signal(number)
        assert capfd.readouterr().err == "medkit: second signal: the kernel is killed\n"
