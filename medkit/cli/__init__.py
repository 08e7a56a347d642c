"""The command line, ``medkit COMMAND``.

Each command imports what it needs when it is called, so that ``medkit --help`` answers at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

import medkit
from medkit.cli.common import Command, Option
from medkit.cli.images import add_images
from medkit.cli.jobs import add_jobs
from medkit.cli.studies import add_studies
from medkit.cli.tables import add_tables

EPILOG = """exit codes:
  0    done                      124  time limit reached
  1    failed, or kernel killed  130  Ctrl-C
  2    wrong usage               143  SIGTERM or SIGUSR1: run again with --resume
"""


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
    about = "Medical models that come out the same twice: notebooks as jobs, tables, predictions."
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("medkit", None, about, EPILOG, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"medkit {medkit.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, command: Command, text: str, epilog: str = "") -> Option:
        sub = commands.add_parser(
            name, help=text, description=text, epilog=epilog, formatter_class=raw
        )
        sub.set_defaults(command=command)
        return sub.add_argument

    add_jobs(add, EPILOG)
    add_tables(add)
    add_images(add)
    add_studies(add)
    return parser
