"""Commands that compare runs: is a gain real, does it repeat, what moves it, what survives."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from medkit.cli.common import (
    AT_ONCE,
    Add,
    Option,
    as_usage,
    device_option,
    pairs,
    parameter_options,
)

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


def add_studies(add: Add) -> None:
    """Add compare, study, certify and chaos."""
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
    parameter_options(certify)
    certify("--repeats", type=int, default=2, metavar="N", help="fresh processes (default: 2)")
    device_option(certify)
    text = "the certificate (default: <notebook>.certificate.json, RUN_DIR/certificate.json)"
    certify("--out", metavar="FILE", help=text)
    certify("--verify", metavar="FILE", help="check a certificate, train nothing")

    text = "inject faults into a notebook's training, and say which runs come through"
    chaos = add("chaos", _chaos, text, CHAOS)
    chaos("notebook", metavar="NOTEBOOK")
    parameter_options(chaos)
    text = (
        "runs of each fault, and undisturbed ones: 3 seeds or more (default: 5); 17 faults at most"
    )
    chaos("--seeds", type=int, default=5, metavar="N", help=text)
    chaos("--faults", default="", metavar="A,B", help="such as sigkill,nan_sample (default: all)")
    chaos("--jobs", type=int, default=0, metavar="N", help=AT_ONCE)
    device_option(chaos)
    text = "the suite's folder (default: runs/<notebook>-chaos)"
    chaos("--out", metavar="DIR", help=text)


def _compare_options(add: Option) -> None:
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


def _compare(args: argparse.Namespace) -> int:
    with as_usage():
        from medkit.study.compare_command import compare_command

        names = ("aa", "methods", "part", "gain", "threshold", "flag_rate", "fixed", "json")
        return compare_command(args.a, args.b, **{name: getattr(args, name) for name in names})


def _study(args: argparse.Namespace) -> int:
    with as_usage():
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
    with as_usage():
        from medkit.jobs.plan import Request
        from medkit.study.certificate_command import certify_command

        request = Request(
            notebook="",
            given=pairs(args.parameter),
            values_file=args.file,
            out=args.out,
            device=args.device,
            command=args.words,
        )
        return certify_command(args.path, request, repeats=args.repeats, verify=args.verify)


def _chaos(args: argparse.Namespace) -> int:
    from medkit.jobs.plan import Request

    with as_usage():
        from medkit.study.chaos_command import chaos_command

        request = Request(
            args.notebook,
            given=pairs(args.parameter),
            values_file=args.file,
            out=args.out,
            device=args.device,
        )
        return chaos_command(request, seeds=args.seeds, faults=args.faults, jobs=args.jobs)
