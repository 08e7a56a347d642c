"""Commands on tables: what they must be, leaks in runs, and predictions."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from medkit.cli.common import Add, as_usage

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


def add_tables(add: Add) -> None:
    """Add audit and predict."""
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


def _audit(args: argparse.Namespace) -> int:
    roles = {role: getattr(args, role) for role in ("target", "patient", "site", "split")}
    with as_usage():
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
    with as_usage():
        from medkit.models.predict import predict_command

        options = {n: getattr(args, n) for n in ("out", "force", "strict", "stage", "contract")}
        return predict_command(args.run_dir, args.table, horizons=args.horizon, **options)
