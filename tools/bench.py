"""Run every benchmarks/*.py and write what they print to benchmarks/RESULTS.md.

Arguments are passed on; with some (``--quick``) the table goes to runs/, not over the full one.
Ends with 1 where a benchmark did: a bar that falls short, or a benchmark that could not be run,
is in the table all the same.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
VERDICT = {0: "met", 1: "FELL SHORT"}


def run_one(script: Path, arguments: list[str]) -> tuple[int, list[str]]:
    """Run one benchmark, pass its lines through as they come, and return code and lines."""
    lines = []
    command = [sys.executable, str(script), *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            lines.append(line.rstrip())
    return process.returncode, lines


def main() -> int:
    """Run them all, worst exit code last."""
    arguments = sys.argv[1:]
    found = (ROOT / "benchmarks").glob("*.py")
    scripts = sorted(p for p in found if not p.name.startswith("_") and p.name != "report.py")
    if not scripts:
        print("benchmarks/ holds no script", file=sys.stderr)
        return 1
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    page = [
        "# Benchmarks",
        "",
        f"Written by `{' '.join(['make bench', *arguments])}` on {datetime.now(UTC):%Y-%m-%d} at "
        f"commit {commit or 'unknown'}; {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}.",
    ]
    worst = 0
    for script in scripts:
        print(f"== {script.stem}", flush=True)
        start = time.monotonic()
        code, lines = run_one(script, arguments)
        worst = max(worst, 0 if code == 0 else 1)
        verdict = VERDICT.get(code, f"could not be run (exit {code})")
        page += ["", f"## {script.stem}: {verdict}", ""]
        page += ["```", *lines, "```", "", f"{time.monotonic() - start:.0f} s"]
    table = ROOT / "runs" / "benchmarks.md" if arguments else RESULTS
    table.parent.mkdir(exist_ok=True)
    table.write_text("\n".join(page) + "\n", encoding="utf-8")
    print(f"table: {table.relative_to(ROOT)}")
    return worst


if __name__ == "__main__":
    sys.exit(main())
