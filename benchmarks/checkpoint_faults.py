"""Checkpoints under fire: killed while they are written, cut short, one bit flipped.

Trainings in forked children are killed by SIGKILL inside the write of a resume point: at random
moments of it, and at each step of its commit. Temporary files (TMPDIR) lie on another file system
than the run, as in most containers. After each kill every checkpoint in the folder is compared
with what an unharmed training held at that place, and the training goes on to the same bits.
Then sound checkpoints are damaged: single bits, short files, empty files. Beside it, what
Lightning's own save and ``torch.load`` do with the same.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before torch: no thread may exist when a training is forked

import pytorch_lightning as pl
import torch
from _kills import differing, digest, outcome
from pytorch_lightning.plugins.io import TorchCheckpointIO
from report import Report
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from medkit import keyed as keys
from medkit.callbacks import resume
from medkit.record import checkpoints as points
from medkit.record.ledger import LEDGER_NAME, Ledger
from medkit.trainer import keyed, stable_trainer, start_run

SEED = 7
KILLS, QUICK_KILLS, KILLS_A_RUN = 50, 10, 5
FLIPS, QUICK_FLIPS = 50, 10
CUTS, QUICK_CUTS = 20, 6
OTHER_FILE_SYSTEM = Path("/dev/shm")
STAGE = "fit"
STEPS = ("part", "part", "part", "digest", "rename", "prune")  # half of the kills at any moment


@dataclass(frozen=True)
class Moment:
    """When a training dies: in which write of this process, and where in it.

    Attributes:
        write: Counted from 1.
        step: "part": any moment; "digest": before the digest is written; "rename": between digest
            and rename; "prune": after the rename.
        part: For "part", the share of a usual write's time that has passed.
    """

    write: int
    step: str
    part: float


class Net(pl.LightningModule):
    """Half a million weights with AdamW's moments: 6 MB a checkpoint, and dropout to go wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(32, 700), nn.ReLU(), nn.Dropout(0.2), nn.Linear(700, 700), nn.ReLU()
        )
        self.head = nn.Linear(700, 2)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        x, y = batch
        return F.cross_entropy(self.head(self.net(x)), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Digests(pl.Callback):
    """Notes what the training holds at each place."""

    def __init__(self) -> None:
        self.held: dict[str, str] = {}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        name = points.checkpoint_name(trainer.current_epoch, batch_idx)
        self.held[name] = _held(pl_module.state_dict(), trainer.optimizers[0].state_dict())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        state = trainer.optimizers[0].state_dict()
        self.held[points.FINISHED] = _held(pl_module.state_dict(), state)


def main() -> int:
    """Print the figures; 1 when a bar falls short."""
    report = Report(__doc__)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("medkit").setLevel(logging.ERROR)  # damaged files are named: that is tested
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    folder = Path(tempfile.mkdtemp(prefix="medkit-faults-"))
    temporary = Path(tempfile.mkdtemp(prefix="medkit-faults-", dir=OTHER_FILE_SYSTEM))
    os.environ["TMPDIR"], tempfile.tempdir = str(temporary), None
    apart = os.stat(tempfile.gettempdir()).st_dev != folder.stat().st_dev
    report.share("faults/TMPDIR on another file system", int(apart), 1, at_least=1.0)
    try:
        _measure(report, folder, temporary)
    finally:
        shutil.rmtree(folder)
        shutil.rmtree(temporary)
    return report.finish()


def _measure(report: Report, folder: Path, temporary: Path) -> None:
    whole = folder / "whole"
    durations: list[float] = []
    _train_child(whole, None, durations)
    held: dict[str, str] = json.loads((whole / "held.json").read_text())
    usual_s = sorted(durations)[len(durations) // 2]
    size = next((whole / "checkpoints" / STAGE).glob("*.ckpt")).stat().st_size
    report.note(f"a checkpoint is {size / 1e6:.1f} MB, its write takes {usual_s * 1e3:.0f} ms")
    _kill_writes(report, folder, temporary, held, usual_s)
    _damage(report, folder, held)


# ---- kills inside a write ----------------------------------------------------------------------


def _kill_writes(
    report: Report, folder: Path, temporary: Path, held: dict[str, str], usual_s: float
) -> None:
    wanted = QUICK_KILLS if report.quick else KILLS
    whole, kills, right, kept, runs, same, files, drawn = (folder / "whole", *[0] * 7)
    torn = 0
    while kills < wanted:
        run_dir = folder / f"killed-{runs}"
        for _ in range(KILLS_A_RUN):
            moment = _moment(drawn)
            drawn += 1
            inside, last_whole = _train_child(run_dir, (moment, usual_s), [])
            if inside is None:  # it came between two writes, or the training was over
                continue
            kills += 1
            found = run_dir / "checkpoints" / STAGE
            chosen = points.newest_sound(found)
            right += _all_right(found, held)
            kept += not last_whole or (chosen is not None and _age(chosen.name) >= _age(last_whole))
            torn += any(found.glob(".*.tmp"))
        _train_child(run_dir, None, [])
        same += not differing(outcome(whole), outcome(run_dir))
        end = [p.name for p in (run_dir / "checkpoints" / STAGE).iterdir()]
        files += len(set(end) - {points.FINISHED, points.FINISHED + ".sha256"})
        shutil.rmtree(run_dir)
        runs += 1
    report.note(f"{kills} kills in {runs} trainings; {torn} left half a temporary file")
    broken, tried = _kill_lightning(folder / "lightning", wanted)
    left = len([path for path in temporary.rglob("*") if path.is_file()])
    report.share(
        "faults/kills in a write, no damaged one used",
        right,
        kills,
        at_least=1.0,
        peers=f"Lightning's save leaves a torn last.ckpt {broken}/{tried}",
    )
    report.share("faults/kills in a write, older ones kept", kept, kills, at_least=1.0)
    report.share("faults/killed trainings, same bits", same, runs, at_least=1.0)
    report.figure(
        "faults/files left over", files, at_most=0, peers=f"Lightning's save {left} in TMPDIR"
    )


def _moment(number: int) -> Moment:
    draw = keys.generator(SEED, "kill", number)
    step = STEPS[number % len(STEPS)]
    return Moment(int(draw.integers(1, 4)), step, float(draw.uniform(0.0, 1.1)))


def _age(name: str) -> tuple[bool, str]:
    return name == points.FINISHED, name


def _all_right(folder: Path, held: dict[str, str]) -> bool:
    """Whether each checkpoint holds what an unharmed training held, or is found out."""
    for path in points.checkpoints(folder):
        try:
            content = torch.load(path, weights_only=True)
            right = _held(content["state_dict"], content["optimizer_states"][0]) == held[path.name]
        except (OSError, RuntimeError, EOFError, ValueError, KeyError):
            right = False
        if not right and points.is_sound(path):
            return False
    return True


def _held(weights: dict[str, Any], optimizer: dict[str, Any]) -> str:
    return digest([dict(weights), optimizer["state"]])


def _train_child(
    run_dir: Path, kill: tuple[Moment, float] | None, durations: list[float]
) -> tuple[Moment | None, str]:
    """Train in a fork until it is done or killed.

    Args:
        run_dir: The run folder; a run in it is resumed.
        kill: When, and how long a write usually takes; None lets it be done.
        durations: Filled with the time each write took.

    Returns:
        The moment, where it came inside a write, else None; and the last point wholly written.
    """
    run_dir.mkdir(exist_ok=True)
    moment, usual_s = kill if kill is not None else (None, 0.0)
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _be_the_training(run_dir, moment, write_end)
    os.close(write_end)
    begun, whole, since = 0, "", 0.0
    with os.fdopen(read_end) as events:
        for event in events:
            kind, name = event.split()
            if kind == "begun":
                begun, since = begun + 1, time.perf_counter()
                if moment is not None and moment.step == "part" and begun == moment.write:
                    _wait_until(since + moment.part * usual_s)
                    os.kill(pid, signal.SIGKILL)
            else:
                durations.append(time.perf_counter() - since)
                whole = name
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    killed = moment is not None and code == -signal.SIGKILL
    if code != 0 and not killed:
        raise RuntimeError(f"a training ended with {code}:\n{_tail(run_dir)}")
    inside = killed and moment is not None and len(durations) < begun
    return (moment if inside else None), whole


def _be_the_training(run_dir: Path, moment: Moment | None, events: int) -> NoReturn:
    log = os.open(run_dir.with_name(run_dir.name + ".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        _tell_of_writes(moment, events)
        _train(run_dir)
        code = 0
    except BaseException:  # the parent reads the log
        logging.getLogger(__name__).exception("the training failed")
    finally:
        os._exit(code)


def _tell_of_writes(moment: Moment | None, events: int) -> None:
    """Tell the parent when a write begins and ends; die at the moment, where it is a step."""
    commit, replace = points.commit, os.replace
    write_synced, sync_folder = points.write_synced, points.sync_folder
    begun = 0

    def die(step: str) -> None:
        if moment is not None and moment.step == step and begun == moment.write:
            os.kill(os.getpid(), signal.SIGKILL)

    def told(path: Path, write: Callable[[Path], None]) -> None:
        nonlocal begun
        begun += 1
        os.write(events, f"begun {path.name}\n".encode())
        commit(path, write)
        os.write(events, f"whole {path.name}\n".encode())

    def written(path: Path, data: bytes) -> None:
        die("digest")
        write_synced(path, data)

    def replaced(source: Path, target: Path) -> None:
        replace(source, target)
        if str(target).endswith(".sha256"):
            die("rename")  # the digest is there, the data are not

    def synced(folder: Path) -> None:
        die("prune")
        sync_folder(folder)

    resume.commit = told
    points.write_synced, points.sync_folder, os.replace = written, synced, replaced


def _train(run_dir: Path) -> None:
    run = start_run(run_dir, seed=SEED)
    draw = keys.torch_generator(SEED, "synth")
    rows = TensorDataset(
        torch.randn(960, 32, generator=draw), torch.randint(0, 2, (960,), generator=draw)
    )
    loader = keyed(DataLoader(rows, batch_size=16, shuffle=True))
    with run.init(STAGE):
        module = Net()
    digests = Digests()
    whole = run_dir.name == "whole"
    trainer = stable_trainer(
        run,
        name=STAGE,
        max_epochs=4,
        callbacks=[digests] if whole else [],
        checkpoint_every_n_steps=1,
        accelerator="cpu",
        enable_progress_bar=False,
    )
    trainer.fit(module, loader, ckpt_path=run.resume(STAGE))
    if whole:
        (run_dir / "held.json").write_text(json.dumps(digests.held))
    run.finish()


def _kill_lightning(folder: Path, wanted: int) -> tuple[int, int]:
    """Kill the save that ``ModelCheckpoint(save_last=True)`` does; count torn ``last.ckpt``."""
    folder.mkdir()
    path, broken, kills = folder / "last.ckpt", 0, 0
    while kills < wanted:
        path.unlink(missing_ok=True)
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read_end)
            _save_for_ever(path, write_end)
        os.close(write_end)
        draw = keys.generator(SEED, "kill", "lightning", kills)
        with os.fdopen(read_end, "rb", buffering=0) as events:
            times = []
            for _ in range(3):  # begun, whole, begun: an older one is there
                events.read(1)
                times.append(time.perf_counter())
            _wait_until(times[2] + draw.uniform(0.0, 1.1) * (times[1] - times[0]))
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kills += 1
        try:
            content = torch.load(path, weights_only=True)
            values = torch.cat([value.flatten()[[0, -1]] for value in content.values()])
            broken += len(values.unique()) != 1
        except (OSError, RuntimeError, EOFError, ValueError):
            broken += 1
    return broken, kills


def _save_for_ever(path: Path, events: int) -> NoReturn:
    try:
        saver = TorchCheckpointIO()
        for number in range(1_000_000):
            state = {f"w{i}": torch.full((500_000,), float(number)) for i in range(3)}
            os.write(events, b"b")
            saver.save_checkpoint(state, path)
            os.write(events, b"e")
    finally:
        os._exit(1)


# ---- damage to sound checkpoints ----------------------------------------------------------------


def _damage(report: Report, folder: Path, held: dict[str, str]) -> None:
    donor = folder / "donor"
    _train_child(donor, (Moment(6, "prune", 0.0), 0.0), [])
    stage = donor / "checkpoints" / STAGE
    points.clean(stage)
    older, newest = points.checkpoints(stage)[-2:]
    whole, size = newest.read_bytes(), newest.stat().st_size

    flips = QUICK_FLIPS if report.quick else FLIPS
    draw = keys.generator(SEED, "flip")
    flipped = [_flipped(whole, int(bit)) for bit in draw.integers(0, 8 * size, flips)]
    noticed, silent = _try(newest, older, flipped, held)
    peers = f"torch.load takes {silent}/{flips} without a word"
    report.share("faults/bit flips noticed, older used", noticed, flips, at_least=1.0, peers=peers)

    beside = points.digest_path(newest)
    sound = beside.read_bytes()
    # 64 hex digits; the newline after them says nothing
    wrong = [_flipped(sound, int(bit)) for bit in draw.integers(0, 8 * 64, flips)]
    noticed, _ = _try(beside, older, wrong, held)
    report.share("faults/bit flips in the digest noticed", noticed, flips, at_least=1.0)

    cuts = QUICK_CUTS if report.quick else CUTS
    short = [b"", whole[:-1], *(whole[: int(n)] for n in draw.integers(1, size - 1, cuts - 2))]
    noticed, silent = _try(newest, older, short, held)
    peers = f"torch.load takes {silent}/{cuts} without a word"
    report.share("faults/short and empty files noticed", noticed, cuts, at_least=1.0, peers=peers)
    _train_on(report, folder, donor, _flipped(whole, 4 * size), whole[: size // 2])


def _flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def _try(path: Path, older: Path, contents: list[bytes], held: dict[str, str]) -> tuple[int, int]:
    """Put each content in place of ``path``.

    Returns:
        How often just the newest point was named and the older one chosen; how often torch.load
        took what is there.
    """
    sound, noticed, silent = path.read_bytes(), 0, 0
    for content in contents:
        path.write_bytes(content)
        named: list[Path] = []
        chosen = points.newest_sound(path.parent, named.append)
        newest = points.checkpoints(path.parent)[-1]
        noticed += chosen == older and named == [newest] and _all_right(path.parent, held)
        try:
            torch.load(newest, weights_only=True)
            silent += 1
        except Exception:  # whatever it says, it has noticed
            continue
        finally:
            path.write_bytes(sound)
    return noticed, silent


def _train_on(report: Report, folder: Path, donor: Path, flipped: bytes, short: bytes) -> None:
    """Resume trainings whose newest, or whose every, checkpoint is damaged."""
    plans = {"flipped": [flipped], "short": [short], "empty": [b""], "both": [flipped, b""]}
    same = named = 0
    for plan, contents in plans.items():
        run_dir = folder / f"damaged-{plan}"
        shutil.copytree(donor, run_dir)
        there = points.checkpoints(run_dir / "checkpoints" / STAGE)[::-1]
        for path, content in zip(there, contents, strict=False):
            path.write_bytes(content)
        _train_child(run_dir, None, [])
        same += not differing(outcome(folder / "whole"), outcome(run_dir))
        said = Ledger(run_dir / LEDGER_NAME).read()
        told = [line["detail"] for line in said if line["event"] == "damaged checkpoint"]
        named += told == [path.name for path in there[: len(contents)]]
    report.share("faults/damaged trainings, same bits", same, len(plans), at_least=1.0)
    report.share("faults/damage named in the ledger", named, len(plans), at_least=1.0)


def _wait_until(end: float) -> None:
    while time.perf_counter() < end:  # a sleep overshoots by a fifth of a write
        pass


def _tail(run_dir: Path) -> str:
    return run_dir.with_name(run_dir.name + ".log").read_text()[-3000:]


if __name__ == "__main__":
    sys.exit(main())
