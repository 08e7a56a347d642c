"""The faults that a chaos suite injects: what happens, where, and what a run has to make of it.

A fault is a name, and its place a function of the seed: the same seed, the same batch or rows.
Those that happen in the training are injected into the run's process from outside
(:mod:`medkit.study.faults_inject`); those that change the truth are written into a copy of the
table before the run begins (:mod:`medkit.study.faults_tables`).
"""

from __future__ import annotations

from dataclasses import dataclass

from medkit import keyed

# What a run has to make of a fault.
RECOVERED = "recovered"  # ends by itself, with the bits of the undisturbed run
RESUMED = "resumed"  # the cause stays: stops cleanly; resumed without the cause it has those bits
INSIDE = "inside"  # ends by itself, its metric where those of undisturbed runs are
FLAGGED = "flagged"  # the data are others now: the ledger says so

EARLIEST, LATEST = 0.3, 0.9  # places: shares of the training; limits of guards are known by then


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        name: As ``--faults`` takes it.
        words: What happens.
        must: One of the four above.
        lasting: It lies in the data, and meets each attempt of a run; else it happens once.
        ledger: Words, one of which the event or the action of a ledger line must have; empty: a
            restart, which ``attempts`` of run.json has, or nothing need be done.
        needs: What a training must have for it to happen, in words; empty: nothing.
        lasts: Batches after which it is over; the training goes on for longer.
    """

    name: str
    words: str
    must: str
    lasting: bool = False
    ledger: tuple[str, ...] = ()
    needs: str = ""
    lasts: int = 0


_STEP = ("skipped", "set aside", "rolled back", "replaced", "redrawn", "quarantine")
_SPLIT = ("memory", "split")
_LEAK, _CHANGED = ("leak", "duplicates"), ("changed data",)

FAULTS = {
    fault.name: fault
    for fault in (
        Fault("sigkill", "the process is killed with SIGKILL", RECOVERED),
        Fault("sigterm", "the job is asked to end with SIGTERM, and queued again", RECOVERED),
        Fault(
            "truncated_checkpoint",
            "SIGKILL, and half of the newest checkpoint is gone",
            RECOVERED,
            ledger=("damaged checkpoint",),
            needs="a checkpoint before the place of the fault",
        ),
        Fault(
            "dead_worker",
            "a loader worker is killed",
            RECOVERED,
            ledger=("loader worker died",),
            needs="loader workers (num_workers above 0)",
        ),
        Fault(
            "disk_full_for_a_while",
            "nothing can be written for 25 batches",
            RECOVERED,
            ledger=("not written",),
            lasts=25,
        ),
        Fault("disk_full", "nothing can be written any more", RESUMED),
        Fault("nan_sample", "one training row holds NaN", INSIDE, True, _STEP),
        Fault(
            "finite_garbage",
            "0.5 % of the training rows hold finite nonsense",
            INSIDE,
            True,
        ),
        Fault("exploding_batch", "a batch's loss is 10,000 times too large", INSIDE, False, _STEP),
        Fault("oom_forward", "a batch does not fit, in the forward pass", INSIDE, False, _SPLIT),
        Fault("oom_backward", "a batch does not fit, in the backward pass", INSIDE, False, _SPLIT),
        Fault("oom_step", "memory runs out as the optimizer steps", INSIDE, False, _SPLIT),
        Fault(
            "corrupt_file",
            "one training sample can't be read",
            INSIDE,
            True,
            ("quarantine", "set aside", "redrawn", "replaced"),
            needs="a dataset that reads samples one by one",
        ),
        Fault("label_flips", "a tenth of the labels is wrong", FLAGGED, True, _CHANGED),
        Fault("missingness_jump", "half of three columns is missing", FLAGGED, True, _CHANGED),
        Fault("intensity_shift", "the values of two columns are shifted", FLAGGED, True, _CHANGED),
        Fault("duplicated_patients", "patients are in it twice, under two ids", FLAGGED, True,
              _LEAK),
    )
}  # fmt: skip


def chosen(names: str) -> list[Fault]:
    """Return the faults of a list such as ``"sigkill,nan_sample"``; all for an empty one.

    Raises:
        ValueError: For a name that is none.
    """
    asked = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in asked if name not in FAULTS]
    if unknown:
        raise ValueError(
            f"faults must be among {', '.join(FAULTS)}; got {', '.join(unknown)}. "
            "Leave --faults out for all of them."
        )
    return [FAULTS[name] for name in asked or FAULTS]


def batch_of(fault: Fault, seed: int, batches: int) -> int:
    """Return the training batch, counted from 0 through all epochs, at which a fault happens."""
    draw = keyed.generator(seed, "fault", fault.name)
    first = int(EARLIEST * batches)
    last = min(int(LATEST * batches), batches - fault.lasts - 1)
    return int(draw.integers(first, max(last, first + 1)))
