"""A loader's worker that dies is replaced, and the batches are the same."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from medkit.data import workers
from medkit.data.loader import keyed
from medkit.data.workers import RESTARTS, LoaderWorkersLostError, is_lost


class Deadly(Dataset[Tensor]):
    """Ends the worker that fetches row 9, as often as there are files in a folder."""

    def __init__(self, folder: Path, how: str) -> None:
        self.folder = folder
        self.how = how

    def __len__(self) -> int:
        return 24

    def __getitem__(self, row: int) -> Tensor:
        left = sorted(self.folder.iterdir())
        if row == 9 and left and get_worker_info() is not None:
            left[0].unlink()
            if self.how == "exit":
                os._exit(3)
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.randn(3) + row


def batches(folder: Path, deaths: int = 0, how: str = "kill", **options: Any) -> Iterator[Tensor]:
    folder.mkdir()
    for number in range(deaths):
        (folder / str(number)).touch()
    loader = keyed(DataLoader(Deadly(folder, how), 4, shuffle=True, **options), seed=3)
    loader.on_lost = lambda place, said: (folder.parent / "lost").write_text(
        f"{place.batch} {said}"
    )
    return iter(loader)


@pytest.mark.parametrize("how", ["kill", "exit"])
@pytest.mark.parametrize("persistent", [False, True])
def test_a_dead_worker_is_replaced_and_no_batch_is_lost_or_changed(
    how: str, persistent: bool, tmp_path: Path
) -> None:
    clean = list(batches(tmp_path / "clean"))
    options = {"num_workers": 2, "persistent_workers": persistent}
    mended = list(batches(tmp_path / "flags", 1, how, **options))
    assert all(torch.equal(a, b) for a, b in zip(clean, mended, strict=True))
    assert "DataLoader worker" in (tmp_path / "lost").read_text()


def test_a_death_that_torch_raises_while_another_is_dealt_with_is_the_same_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised = []

    def late(found: Any, *, to: bool) -> None:
        if not to and not raised and not list((tmp_path / "flags").iterdir()):
            raised.append(None)
            raise RuntimeError("DataLoader worker (pid 7) exited unexpectedly with exit code 3.")
        listen(found, to=to)

    listen = workers._listen
    clean = list(batches(tmp_path / "clean"))
    monkeypatch.setattr(workers, "_listen", late)
    mended = list(batches(tmp_path / "flags", 1, "exit", num_workers=2))
    assert all(torch.equal(a, b) for a, b in zip(clean, mended, strict=True))
    assert raised


def test_a_persistent_worker_that_dies_between_epochs_is_replaced(tmp_path: Path) -> None:
    tmp_path.joinpath("flags").mkdir()
    rows = DataLoader(Deadly(tmp_path / "flags", "kill"), 4, num_workers=2, persistent_workers=True)
    loader, lost = keyed(rows, seed=3), []
    loader.on_lost = lambda place, said: lost.append(said)
    first = list(loader)
    os.kill(loader._iterator._workers[1].pid, signal.SIGKILL)
    time.sleep(0.2)
    again = list(loader)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert lost


def test_workers_that_keep_dying_end_it_with_the_place(tmp_path: Path) -> None:
    with pytest.raises(LoaderWorkersLostError, match=r"died 4 times.*of epoch 0: .*\. Look at mem"):
        list(batches(tmp_path / "flags", RESTARTS + 1, num_workers=1))


def test_a_death_while_nobody_waits_for_a_batch_does_not_end_what_is_done_there(
    tmp_path: Path,
) -> None:
    found = batches(tmp_path / "flags", 1, num_workers=1)
    got = [next(found)]  # row 9 is not in it, and its worker fetches ahead
    for _ in range(200_000):  # a handler that raises would do so here
        if not any((tmp_path / "flags").iterdir()):
            break
        torch.zeros(1).sum().item()
    time.sleep(0.2)
    got += list(found)
    clean = list(batches(tmp_path / "clean"))
    assert all(torch.equal(a, b) for a, b in zip(clean, got, strict=True))


def test_an_error_of_the_dataset_is_no_dead_worker() -> None:
    assert not is_lost(RuntimeError("Caught RuntimeError in DataLoader worker process 0."))
    assert is_lost(RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"))
    assert is_lost(RuntimeError("DataLoader timed out after 3 seconds"))
    assert not is_lost(ValueError("DataLoader worker (pid 7) is killed by signal: Killed."))
