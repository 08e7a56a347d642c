"""The command line: ``medkit run | sweep | params | runs | logs | doctor | check``.

Each command imports what it needs when it is called, so that ``medkit --help`` answers at once.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import medkit

EPILOG = """exit codes:
  0    done                      124  time limit reached
  1    failed, or kernel killed  130  Ctrl-C
  2    wrong usage               143  SIGTERM or SIGUSR1: run again with --resume
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="medkit: %(message)s", stream=sys.stderr)
    command: Callable[[argparse.Namespace, list[str]], int] = args.command
    from medkit.jobs.notebook import UsageError
    from medkit.record.lock import RunBusyError

    try:
        return command(args, arguments)
    except (UsageError, RunBusyError) as error:
        sys.stderr.write(f"medkit: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `medkit runs | head`
        sys.stderr.close()
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

    def add(name: str, command: Callable[..., int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(command=command)
        return sub

    run = add("run", _run, "Run a notebook as a job in a run folder of its own.")
    _add_job_options(run)
    run.add_argument(
        "--out", metavar="DIR", help="run folder (default: runs/<notebook>/<UTC>-s<seed>)"
    )
    run.add_argument(
        "--resume",
        action="store_true",
        help="go on with the unfinished run in --out, or with this notebook's newest "
        "unfinished run with the same parameters",
    )
    run.add_argument(
        "--allow-inexact",
        action="store_true",
        help="resume although parameters or notebook differ; the run says so",
    )
    run.add_argument("--dry-run", action="store_true", help="say what would be run; write nothing")
    run.add_argument("--device", default="", metavar="D", help="auto, cpu, gpu or gpu:1")

    params = add("params", _params, "List a notebook's parameters: type, default, help.")
    params.add_argument("notebook")
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
        help="set a parameter; `medkit params` lists them",
    )
    parser.add_argument("-f", "--file", metavar="FILE", help="parameters from a YAML file; -p wins")
    parser.add_argument(
        "--retries",
        type=int,
        default=0,
        metavar="N",
        help="go on by itself up to N times when the kernel dies",
    )
    parser.add_argument(
        "--timeout", type=float, metavar="S", help="stop after S seconds, with a checkpoint"
    )


def _run(args: argparse.Namespace, argv: list[str]) -> int:
    from medkit.jobs.command import run_command
    from medkit.jobs.plan import Request

    request = Request(
        notebook=args.notebook,
        given=tuple((name, value) for name, value in args.parameter),
        values_file=args.file,
        out=args.out,
        resume=args.resume,
        retries=args.retries,
        timeout_s=args.timeout,
        device=args.device,
        allow_inexact=args.allow_inexact,
        command=("medkit", *argv),
        cwd=Path.cwd(),
    )
    return run_command(request, dry_run=args.dry_run)


def _params(args: argparse.Namespace, argv: list[str]) -> int:
    from medkit.jobs.command import params_command

    return params_command(args.notebook)


if __name__ == "__main__":
    sys.exit(main())
