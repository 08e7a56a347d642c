"""The command line: ``medkit run | sweep | params | runs | logs | check | audit | doctor``.

Each command imports what it needs when it is called, so that ``medkit --help`` answers at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import medkit

EPILOG = """exit codes:
  0    done                      124  time limit reached
  1    failed, or kernel killed  130  Ctrl-C
  2    wrong usage               143  SIGTERM or SIGUSR1: run again with --resume
"""
Command = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(words)
    args.words = ("medkit", *words)
    logging.basicConfig(level=logging.WARNING, format="medkit: %(message)s", stream=sys.stderr)
    from medkit.jobs.notebook import UsageError
    from medkit.record.lock import RunBusyError

    command: Command = args.command
    try:
        return command(args)
    except (UsageError, RunBusyError) as error:
        sys.stderr.write(f"medkit: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `medkit runs | head`: the interpreter must not flush at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="medkit",
        description="Medical models that come out the same twice: notebooks as jobs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"medkit {medkit.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        return sub

    _add_run(add("run", _run, "run a notebook as a job, in a run folder of its own"))
    _add_sweep(add("sweep", _sweep, "run a notebook over seeds and a grid, ending in one table"))

    params = add("params", _params, "list a notebook's parameters: type, default, help")
    params.add_argument("notebook", metavar="NOTEBOOK")

    runs = add("runs", _runs, "list run folders, or prune their checkpoints")
    runs.add_argument("dir", metavar="DIR", nargs="?", default="runs", help="default: runs")
    runs.add_argument(
        "--prune-checkpoints",
        action="store_true",
        help="remove the resume points of finished stages; final weights stay",
    )
    runs.add_argument(
        "--unfinished",
        action="store_true",
        help="with --prune-checkpoints: those of unfinished runs too, which then start afresh",
    )
    runs.add_argument("--yes", action="store_true", help="don't ask before removing")

    logs = add("logs", _logs, "print what a run has printed")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the run ends")
    logs.add_argument("run_dir", metavar="RUN_DIR")

    check = add("check", _check, "say which promises hold for your module and your data")
    check.add_argument("module", metavar="MODULE", help="package:LightningModule, or a function")
    check.add_argument("data", metavar="DATA", help="package:LightningDataModule, or a function")

    audit = add("audit", _audit, "propose a data contract for a table, or look for leaks in a run")
    audit.add_argument("path", metavar="TABLE|RUN_DIR", help="a CSV or Parquet file, or a run")
    audit.add_argument("--out", metavar="FILE", help="write the proposed contract there too")
    for role in ("target", "patient", "site", "split"):
        audit.add_argument(
            f"--{role}", metavar="COLUMN", help=f"the table's {role} (default: guessed by name)"
        )
    audit.add_argument(
        "--table", metavar="FILE", help="the run's table, where it lies elsewhere by now"
    )

    add("doctor", _doctor, "look at versions, devices, disk, shared memory and locks")
    return parser


def _add_job_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("notebook", metavar="NOTEBOOK")
    parser.add_argument(
        "-p",
        "--parameter",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="set a parameter; `medkit params NOTEBOOK` lists them",
    )
    parser.add_argument("-f", "--file", metavar="FILE", help="parameters from YAML; -p wins")
    parser.add_argument(
        "--retries",
        type=int,
        default=0,
        metavar="N",
        help="go on by itself up to N times when the kernel dies",
    )
    parser.add_argument(
        "--timeout", type=float, metavar="S", help="ask to save and end after S seconds"
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    _add_job_options(parser)
    parser.add_argument("--out", metavar="DIR", help="default: runs/<notebook>/<UTC>-s<seed>")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --out (begin it where the folder is empty), or with this "
        "notebook's newest unfinished run with the same parameters",
    )
    parser.add_argument(
        "--allow-inexact",
        action="store_true",
        help="resume although parameters or notebook differ; the run says so",
    )
    parser.add_argument("--device", default="", metavar="D", help="auto, cpu, gpu or gpu:1")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be run; write and start nothing"
    )


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    _add_job_options(parser)
    parser.add_argument(
        "--seeds", type=int, default=5, metavar="N", help="runs per grid point (default: 5)"
    )
    parser.add_argument(
        "-g",
        "--grid",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "V1,V2"),
        help="try each value of a parameter; several -g make a grid",
    )
    parser.add_argument(
        "--jobs", type=int, default=0, metavar="N", help="runs at a time (default: one per core)"
    )
    parser.add_argument("--devices", default="", metavar="0,1", help="share out these accelerators")
    parser.add_argument("--out", metavar="DIR", help="a sweep's folder goes on where it stopped")
    parser.add_argument(
        "--best-by", default="", metavar="METRIC", help="such as val/auroc or min:val/loss"
    )


def _run(args: argparse.Namespace) -> int:
    from medkit.jobs.command import run_command
    from medkit.jobs.plan import Request

    request = Request(
        notebook=args.notebook,
        given=_pairs(args.parameter),
        values_file=args.file,
        out=args.out,
        resume=args.resume,
        retries=args.retries,
        timeout_s=args.timeout,
        device=args.device,
        allow_inexact=args.allow_inexact,
        command=args.words,
        cwd=Path.cwd(),
    )
    return run_command(request, dry_run=args.dry_run)


def _sweep(args: argparse.Namespace) -> int:
    from medkit.jobs.grid import SweepRequest
    from medkit.jobs.sweep import sweep_command

    request = SweepRequest(
        notebook=args.notebook,
        given=_pairs(args.parameter),
        values_file=args.file,
        grid=_pairs(args.grid),
        seeds=args.seeds,
        jobs=args.jobs,
        devices=args.devices,
        out=args.out,
        best_by=args.best_by,
        retries=args.retries,
        timeout_s=args.timeout,
        command=args.words,
        cwd=Path.cwd(),
    )
    return sweep_command(request)


def _pairs(given: list[list[str]]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in given)


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


def _audit(args: argparse.Namespace) -> int:
    from medkit.data.contract.proposal import audit_csv
    from medkit.data.leakage.runs import audit_run
    from medkit.jobs.notebook import UsageError

    try:
        if Path(args.path).is_dir():
            found = audit_run(args.path, csv_path=args.table)
            sys.stdout.write(found.text())
            return 1 if found.leaks else 0
        roles = {role: getattr(args, role) for role in ("target", "patient", "site", "split")}
        sys.stdout.write(audit_csv(args.path, args.out, **roles))
    except (ValueError, FileNotFoundError) as error:  # what the user named is not what it must be
        raise UsageError(str(error)) from error
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from medkit.jobs.doctor import doctor_command

    return doctor_command()


if __name__ == "__main__":
    sys.exit(main())
