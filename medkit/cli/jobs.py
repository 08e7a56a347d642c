"""Commands that start runs, look after them, or look at the machine and the user's code."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medkit.cli.common import (
    AT_ONCE,
    Add,
    Option,
    as_usage,
    device_option,
    pairs,
    parameter_options,
)


def add_jobs(add: Add, epilog: str) -> None:
    """Add run, sweep, params, runs, logs, check and doctor."""
    _job_options(run := add("run", _run, "run a notebook as a job, in a folder of its own", epilog))
    run("--out", metavar="DIR", help="default: runs/<notebook>/<UTC>-s<seed>")
    run(
        "--resume",
        action="store_true",
        help="go on with the run in --out (begin it where the folder is empty), or with this "
        "notebook's newest unfinished run with the same parameters",
    )
    inexact = "resume although parameters or notebook differ; the run says so"
    run("--allow-inexact", action="store_true", help=inexact)
    device_option(run)
    run("--dry-run", action="store_true", help="say what would be run; write and start nothing")

    sweep = add("sweep", _sweep, "run a notebook over seeds and a grid, ending in one table")
    _job_options(sweep)
    sweep("--seeds", type=int, default=5, metavar="N", help="runs per grid point (default: 5)")
    grid = "try each value of a parameter; several -g make a grid"
    sweep("-g", "--grid", nargs=2, action="append", metavar=("NAME", "V1,V2"), help=grid)
    sweep("--jobs", type=int, default=0, metavar="N", help=AT_ONCE)
    sweep("--devices", default="", metavar="0,1", help="share out these accelerators")
    sweep("--out", metavar="DIR", help="a sweep's folder goes on where it stopped")
    sweep("--best-by", default="", metavar="METRIC", help="such as val/auroc or min:val/loss")

    params = add("params", _params, "list a notebook's parameters: type, default, help")
    params("notebook", metavar="NOTEBOOK")

    runs = add("runs", _runs, "list run folders, or prune their checkpoints")
    runs("dir", metavar="DIR", nargs="?", default="runs", help="default: runs")
    prune = "remove the resume points of finished stages; final weights stay"
    runs("--prune-checkpoints", action="store_true", help=prune)
    afresh = "with --prune-checkpoints: those of unfinished runs too, which then start afresh"
    runs("--unfinished", action="store_true", help=afresh)
    runs("--yes", action="store_true", help="don't ask before removing")

    logs = add("logs", _logs, "print what a run has printed")
    logs("-f", "--follow", action="store_true", help="go on until the run ends")
    logs("run_dir", metavar="RUN_DIR")

    check = add("check", _check, "say which promises hold for your module and your data")
    check("module", metavar="MODULE", help="package:LightningModule, or a function")
    check("data", metavar="DATA", help="package:LightningDataModule, or a function")

    doctor = add("doctor", _doctor, "look at versions, devices, disk, shared memory and locks")
    text = "package:factory of a net: which of its operations vary on an accelerator, and swaps"
    doctor("--model", metavar="SPEC", help=text)
    text = "with --model: the input's shape, such as 1,1,64,64,64 (default: example_input_array)"
    doctor("--input", default="", metavar="SHAPE", help=text)
    text = "look for identifiers in every byte of a run folder, packed files included"
    doctor("--phi", metavar="RUN_DIR", help=text)
    text = "with --phi: one name, id or date a line; kept outside of the folder"
    doctor("--identifiers", metavar="FILE", help=text)


def _job_options(add: Option) -> None:
    add("notebook", metavar="NOTEBOOK")
    parameter_options(add)
    text = "go on by itself up to N times when the kernel dies"
    add("--retries", type=int, default=0, metavar="N", help=text)
    add("--timeout", type=float, metavar="S", help="ask to save and end after S seconds")


def _job(args: argparse.Namespace) -> dict[str, Any]:
    """Return what a run and a sweep have in common."""
    return {
        "notebook": args.notebook,
        "given": pairs(args.parameter),
        "values_file": args.file,
        "out": args.out,
        "retries": args.retries,
        "timeout_s": args.timeout,
        "command": args.words,
        "cwd": Path.cwd(),
    }


def _run(args: argparse.Namespace) -> int:
    from medkit.jobs.command import run_command
    from medkit.jobs.plan import Request

    more = {name: getattr(args, name) for name in ("resume", "device", "allow_inexact")}
    return run_command(Request(**_job(args), **more), dry_run=args.dry_run)


def _sweep(args: argparse.Namespace) -> int:
    from medkit.jobs.grid import SweepRequest
    from medkit.jobs.sweep import sweep_command

    more = {name: getattr(args, name) for name in ("seeds", "jobs", "devices", "best_by")}
    return sweep_command(SweepRequest(**_job(args), grid=pairs(args.grid), **more))


def _params(args: argparse.Namespace) -> int:
    from medkit.jobs.command import params_command

    return params_command(args.notebook)


def _runs(args: argparse.Namespace) -> int:
    from medkit.jobs.listing import runs_command

    return runs_command(
        args.dir, prune=args.prune_checkpoints, unfinished=args.unfinished, yes=args.yes
    )


def _logs(args: argparse.Namespace) -> int:
    from medkit.jobs.listing import logs_command

    return logs_command(args.run_dir, follow=args.follow)


def _check(args: argparse.Namespace) -> int:
    from medkit.check import run_check

    return run_check(args.module, args.data)


def _doctor(args: argparse.Namespace) -> int:
    if args.model:
        with as_usage():
            from medkit.check.scan import scan_command

            return scan_command(args.model, args.input)
    if args.phi or args.identifiers:
        with as_usage():
            from medkit.jobs.phi import phi_command

            return phi_command(args.phi, args.identifiers)
    from medkit.jobs.doctor import doctor_command

    return doctor_command()
