"""The command line, ``medkit COMMAND``.

Each command imports what it needs when it is called, so that ``medkit --help`` answers at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import medkit

EPILOG = """exit codes:
  0    done                      124  time limit reached
  1    failed, or kernel killed  130  Ctrl-C
  2    wrong usage               143  SIGTERM or SIGUSR1: run again with --resume
"""
AUDIT = """exit codes:
  0  no leak found, or a contract proposed
  1  a leak
  2  wrong usage, or nothing to judge by
With --label-shuffle also those of `medkit run` where the training was stopped."""
PREDICT = """columns written:
  the table's own columns of patient and site; row (1: the first below the header)
  prob, prob_logistic (logistic regression on the same rows)
  spread (sd over members; empty where there is one)
  or, for survival, risk (log relative hazard), risk_cox (penalised Cox), spread, survival_T
  positive: 1 from the threshold in the run's metrics.json on, where there is one
  outside: why the row is outside of what was trained on; empty where it is not

refused, nothing written: a column missing or twice; text where there is no contract to read it by;
  a row without its site; a site whose units the contract doesn't say
flagged in `outside`: values that break the contract or lie far from training; an unknown site;
  a site's values far off together (another unit?); more missing than in training

exit codes:
  0  written
  1  --strict, and a row is outside; nothing written
  2  the table, the run or the usage is wrong; nothing written
"""
CERTIFY = """exit codes:
  0  equal bit for bit
  1  they differ; what is to blame is said
  2  wrong usage, or the job failed
Each process trains the notebook whole: where it has a parameter quick, try `-p quick true` first.
A run of `MEDKIT_HASH_STEPS=1 medkit run ...` is compared step by step when it is certified."""
CHAOS = """what is printed, fault by fault:
  ended by itself   `medkit run --retries` brought it to its end (a full disk: it stopped cleanly
                    and was resumed; SIGTERM: it was queued again)
  came out          with the bits of the undisturbed run of the same seed; or with a metric inside
                    the range of undisturbed runs; or, where the data were changed, flagged
  written down      what was done about it is in ledger.jsonl (a restart: in run.json)
  LOST              a run that did not, with the reason from its log
Guards must be on in the notebook, such as stable_trainer(run, spike_guard=True, quarantine=True,
memory_guard=True): what nothing guards against is lost.
A suite that was stopped goes on when it is started again: runs that are over are kept.

exit codes:
  0    nothing was lost            2    wrong usage, or undisturbed runs fail
  1    something was lost          130  stopped
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
    about = "Medical models that come out the same twice: notebooks as jobs, tables, predictions."
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("medkit", None, about, EPILOG, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"medkit {medkit.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, command: Command, text: str, epilog: str = "") -> Callable[..., Any]:
        sub = commands.add_parser(
            name, help=text, description=text, epilog=epilog, formatter_class=raw
        )
        sub.set_defaults(command=command)
        return sub.add_argument

    _job_options(run := add("run", _run, "run a notebook as a job, in a folder of its own", EPILOG))
    run("--out", metavar="DIR", help="default: runs/<notebook>/<UTC>-s<seed>")
    run(
        "--resume",
        action="store_true",
        help="go on with the run in --out (begin it where the folder is empty), or with this "
        "notebook's newest unfinished run with the same parameters",
    )
    inexact = "resume although parameters or notebook differ; the run says so"
    run("--allow-inexact", action="store_true", help=inexact)
    run("--device", default="", metavar="D", help="auto, cpu, gpu or gpu:1")
    run("--dry-run", action="store_true", help="say what would be run; write and start nothing")

    sweep = add("sweep", _sweep, "run a notebook over seeds and a grid, ending in one table")
    _job_options(sweep)
    sweep("--seeds", type=int, default=5, metavar="N", help="runs per grid point (default: 5)")
    grid = "try each value of a parameter; several -g make a grid"
    sweep("-g", "--grid", nargs=2, action="append", metavar=("NAME", "V1,V2"), help=grid)
    at_once = "runs at a time (default: one per core)"
    sweep("--jobs", type=int, default=0, metavar="N", help=at_once)
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

    text = "propose a data contract for a table, or look for leaks in a run"
    audit = add("audit", _audit, text, AUDIT)
    audit("path", metavar="TABLE|RUN_DIR", help="a CSV or Parquet file, or a run")
    out = "write the proposed contract there too; with --label-shuffle: the training's run folder"
    audit("--out", metavar="PATH", help=out)
    for role in ("target", "patient", "site", "split"):
        audit(f"--{role}", metavar="COLUMN", help=f"the table's {role} (default: by its name)")
    audit("--table", metavar="FILE", help="the run's table, where it lies elsewhere by now")
    shuffle = "train the run's notebook again on shuffled labels; what predicts them is a leak"
    audit("--label-shuffle", action="store_true", help=shuffle)

    text = "score a new table with a run's model, and say which rows it was not made for"
    predict = add("predict", _predict, text, PREDICT)
    predict("run_dir", metavar="RUN_DIR")
    predict("table", metavar="TABLE", help="CSV or Parquet; needs no labels")
    predict("--out", metavar="FILE", help="default: <table>.predicted.<suffix> beside the table")
    predict("--force", action="store_true", help="replace the file if it is there")
    predict("--strict", action="store_true", help="write nothing where a row is outside")
    predict("--stage", metavar="NAME", help="which model, where the run has several")
    horizon = "survival until then, in the unit of training (default: the run's own)"
    predict("--horizon", type=float, action="append", default=[], metavar="T", help=horizon)
    further = "the run's contract with further sites and their units"
    predict("--contract", metavar="FILE", help=further)

    text = "say whether a gain is real, for other trainings and other patients"
    _compare_options(add("compare", _compare, text))

    study = add("study", _study, "say how far results move when only the seed does")
    study("dir", metavar="DIR", help="the folder of a Study, or of a sweep")
    text = "the result that comes first, such as test/auroc (default: how the nets rank)"
    study("--metric", default="", metavar="NAME", help=text)
    study("--json", metavar="FILE", help="write the numbers there too")
    study("--html", metavar="FILE", help="write the report there too, as one page")

    text = "train a notebook in fresh processes: the same bits, or what is to blame"
    certify = add("certify", _certify, text, CERTIFY)
    certify("path", metavar="NOTEBOOK|RUN_DIR", nargs="?", help="a finished run: compared as well")
    text = "set a parameter; `medkit params NOTEBOOK` lists them"
    certify("-p", "--parameter", nargs=2, action="append", metavar=("NAME", "VALUE"), help=text)
    certify("-f", "--file", metavar="FILE", help="parameters from YAML; -p wins")
    certify("--repeats", type=int, default=2, metavar="N", help="fresh processes (default: 2)")
    certify("--device", default="", metavar="D", help="auto, cpu, gpu or gpu:1")
    text = "the certificate (default: <notebook>.certificate.json, RUN_DIR/certificate.json)"
    certify("--out", metavar="FILE", help=text)
    certify("--verify", metavar="FILE", help="check a certificate, train nothing")

    text = "inject faults into a notebook's training, and say which runs come through"
    chaos = add("chaos", _chaos, text, CHAOS)
    chaos("notebook", metavar="NOTEBOOK")
    text = "set a parameter; `medkit params NOTEBOOK` lists them"
    chaos("-p", "--parameter", nargs=2, action="append", metavar=("NAME", "VALUE"), help=text)
    chaos("-f", "--file", metavar="FILE", help="parameters from YAML; -p wins")
    text = "runs of each fault, and undisturbed ones: 3 seeds or more (default: 5)"
    chaos("--seeds", type=int, default=5, metavar="N", help=text)
    chaos("--faults", default="", metavar="A,B", help="such as sigkill,nan_sample (default: all)")
    chaos("--jobs", type=int, default=0, metavar="N", help=at_once)
    chaos("--device", default="", metavar="D", help="auto, cpu, gpu or gpu:1")
    text = "the suite's folder (default: runs/<notebook>-chaos)"
    chaos("--out", metavar="DIR", help=text)

    doctor = add("doctor", _doctor, "look at versions, devices, disk, shared memory and locks")
    text = "package:factory of a net: which of its operations vary on an accelerator, and swaps"
    doctor("--model", metavar="SPEC", help=text)
    text = "with --model: the input's shape, such as 1,1,64,64,64 (default: example_input_array)"
    doctor("--input", default="", metavar="SHAPE", help=text)
    return parser


def _job_options(add: Callable[..., Any]) -> None:
    add("notebook", metavar="NOTEBOOK")
    text = "set a parameter; `medkit params NOTEBOOK` lists them"
    add("-p", "--parameter", nargs=2, action="append", metavar=("NAME", "VALUE"), help=text)
    add("-f", "--file", metavar="FILE", help="parameters from YAML; -p wins")
    text = "go on by itself up to N times when the kernel dies"
    add("--retries", type=int, default=0, metavar="N", help=text)
    add("--timeout", type=float, metavar="S", help="ask to save and end after S seconds")


def _job(args: argparse.Namespace) -> dict[str, Any]:
    """Return what a run and a sweep have in common."""
    return {
        "notebook": args.notebook,
        "given": _pairs(args.parameter),
        "values_file": args.file,
        "out": args.out,
        "retries": args.retries,
        "timeout_s": args.timeout,
        "command": args.words,
        "cwd": Path.cwd(),
    }


def _pairs(given: list[list[str]] | None) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in given or ())


def _compare_options(add: Callable[..., Any]) -> None:
    text = (
        "a run, a folder of runs (such as a sweep's grid point, or STUDY/RECIPE), a table of "
        "predictions (patient, y, score[, seed, site], or patient, y, seed_0, ...), a folder with "
        "a table per seed, or published results (method, test, seed, metric)"
    )
    add("a", metavar="A", help=text)
    add("b", metavar="B", nargs="?", help="the other recipe, likewise")
    add("--aa", action="store_true", help="compare trainings of A with each other")
    add("--methods", nargs=2, metavar=("A", "B"), help="which two of a table's methods")
    add("--part", metavar="NAME", help="which predictions of the runs (default: test)")
    text = "the difference in AUROC that matters (default: 0.01)"
    add("--gain", type=float, default=0.01, metavar="G", help=text)
    add("--threshold", type=float, metavar="T", help="flag at it, for F1 and decisions flipped")
    text = "without --threshold, the share of rows that each training flags (default: 0.2)"
    add("--flag-rate", type=float, default=0.2, metavar="R", help=text)
    text = "that recipe draws nothing (logistic regression, say): it has one run"
    add("--fixed", action="append", default=[], choices=("A", "B"), help=text)
    add("--json", metavar="FILE", help="write the numbers there too")


def _run(args: argparse.Namespace) -> int:
    from medkit.jobs.command import run_command
    from medkit.jobs.plan import Request

    more = {name: getattr(args, name) for name in ("resume", "device", "allow_inexact")}
    return run_command(Request(**_job(args), **more), dry_run=args.dry_run)


def _sweep(args: argparse.Namespace) -> int:
    from medkit.jobs.grid import SweepRequest
    from medkit.jobs.sweep import sweep_command

    more = {name: getattr(args, name) for name in ("seeds", "jobs", "devices", "best_by")}
    return sweep_command(SweepRequest(**_job(args), grid=_pairs(args.grid), **more))


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
    roles = {role: getattr(args, role) for role in ("target", "patient", "site", "split")}
    with _as_usage():
        if Path(args.path).is_dir():
            from medkit.data.leakage.runs import require_no_options

            options = roles if args.label_shuffle else roles | {"out": args.out}
            require_no_options(options)
        if args.label_shuffle:
            if args.table:
                raise ValueError(
                    "--label-shuffle takes the table from the run's parameters, and --table was "
                    "given. Put the table back to where it was, or leave one of the two out."
                )
            from medkit.data.leakage.shuffled_run import shuffle_command

            return shuffle_command(args.path, out=args.out, command=args.words)
        if Path(args.path).is_dir():
            from medkit.data.leakage.runs import audit_command

            return audit_command(args.path, csv_path=args.table)
        from medkit.data.contract.proposal import audit_csv

        sys.stdout.write(audit_csv(args.path, args.out, **roles))
    return 0


def _predict(args: argparse.Namespace) -> int:
    with _as_usage():
        from medkit.models.predict import predict_command

        options = {n: getattr(args, n) for n in ("out", "force", "strict", "stage", "contract")}
        return predict_command(args.run_dir, args.table, horizons=args.horizon, **options)


@contextmanager
def _as_usage() -> Iterator[None]:
    """What the user named is not what it must be, or can't be read or written."""
    from medkit.jobs.notebook import UsageError

    try:
        yield
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error


def _compare(args: argparse.Namespace) -> int:
    with _as_usage():
        from medkit.study.compare_command import compare_command

        names = ("aa", "methods", "part", "gain", "threshold", "flag_rate", "fixed", "json")
        return compare_command(args.a, args.b, **{name: getattr(args, name) for name in names})


def _study(args: argparse.Namespace) -> int:
    with _as_usage():
        from medkit.record.files import write_text
        from medkit.record.results import write_metrics
        from medkit.study.study import Study
        from medkit.study.study_report import ReportSettings

        found = Study.open(args.dir).report(ReportSettings(metric=args.metric))
        if args.json:
            write_metrics(args.json, found.metrics)
        if args.html:
            write_text(args.html, found.page(Path(args.dir).resolve().name))
        sys.stdout.write(str(found))
    return 0


def _certify(args: argparse.Namespace) -> int:
    with _as_usage():
        from medkit.jobs.plan import Request
        from medkit.study.certificate_command import certify_command

        request = Request(
            notebook="",
            given=_pairs(args.parameter),
            values_file=args.file,
            out=args.out,
            device=args.device,
            command=args.words,
        )
        return certify_command(args.path, request, repeats=args.repeats, verify=args.verify)


def _chaos(args: argparse.Namespace) -> int:
    from medkit.jobs.plan import Request

    with _as_usage():
        from medkit.study.chaos_command import chaos_command

        request = Request(
            args.notebook,
            given=_pairs(args.parameter),
            values_file=args.file,
            out=args.out,
            device=args.device,
        )
        return chaos_command(request, seeds=args.seeds, faults=args.faults, jobs=args.jobs)


def _doctor(args: argparse.Namespace) -> int:
    if args.model:
        with _as_usage():
            from medkit.check.scan import scan_command

            return scan_command(args.model, args.input)
    from medkit.jobs.doctor import doctor_command

    return doctor_command()


if __name__ == "__main__":
    sys.exit(main())
