"""What an executed notebook keeps: readable, bounded, no widget state, no secrets."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from medkit.jobs.streams import HEAD_CHARS, TAIL_CHARS


@pytest.mark.parametrize(
    ("refreshes", "printed"),
    [(2000, 20_000), pytest.param(20_000, 100_000, marks=pytest.mark.slow)],
)
def test_a_noisy_notebook_stays_small_and_readable(
    make, medkit, refreshes: int, printed: int
) -> None:
    make(
        f"from tqdm import tqdm\nfor _ in tqdm(range({refreshes}), mininterval=0): pass",
        f"for i in range({printed}): print('line', i)",
        "import sys\nfor i in range(500):\n    print('o', i, flush=True)\n"
        "    print('e', i, file=sys.stderr, flush=True)",
        "for i in range(700): display(i)",
    )
    done = medkit("run", "job.ipynb")
    assert done.code == 0
    bar, lines, turns, shown = [
        c.outputs for c in done.notebook.cells if not c.metadata.get("tags")
    ]
    assert [out.text.count("\n") for out in bar] == [1]
    assert f"{refreshes}/{refreshes}" in bar[0].text
    assert len(lines) == 1
    assert lines[0].text.startswith("line 0\n")
    assert lines[0].text.endswith(f"line {printed - 1}\n")
    assert "characters left out" in lines[0].text
    assert len(lines[0].text) < HEAD_CHARS + TAIL_CHARS + 2_000
    assert len(turns) < 150
    assert sum(out.text.count("\n") for out in turns) == 1000
    assert "more outputs left out" in shown[-1].data["text/plain"]
    log = (done.run_dir / "logs" / "output.log").read_text()
    assert f"line {printed // 2}\n" in log


def test_no_output_is_lost_while_the_launcher_is_held_up(make, tmp_path: Path) -> None:
    make(
        "import os, subprocess\npid = int(os.environ['MEDKIT_LAUNCHER_PID'])\n"
        "os.kill(pid, 19)  # SIGSTOP: a busy machine's worst hour\n"
        "for i in range(4000): print('line', i, flush=True)\n"
        "os.kill(pid, 18)",
    )
    done = subprocess.run(
        [sys.executable, "-m", "medkit.cli", "run", "job.ipynb", "--out", "run"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    assert done.returncode == 0
    log = (tmp_path / "run" / "logs" / "output.log").read_text().splitlines()
    assert [line for line in log if line.startswith("line ")] == [f"line {i}" for i in range(4000)]


def test_no_state_of_a_widget_is_kept_but_what_it_captured_is(make, medkit) -> None:
    make(
        "import ipywidgets\nout = ipywidgets.Output()\n"
        "display(ipywidgets.Text('patient-4711'), out)\n"
        "with out: print('captured')"
    )
    done = medkit("run", "job.ipynb")
    assert done.code == 0
    assert "widgets" not in done.notebook.metadata
    text = (done.run_dir / "notebook.ipynb").read_text()
    assert "widget-view" not in text
    assert "captured" in done.printed


def test_a_secret_of_the_environment_is_in_no_file_of_the_run(
    make, medkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUB_TOKEN", "very-secret-value-1")
    make(
        "import os\nprint('the token is', os.environ['HUB_TOKEN'])\n"
        "display({'k': os.environ['HUB_TOKEN']})\n"
        "raise ValueError(os.environ['HUB_TOKEN'])"
    )
    failed = medkit("run", "job.ipynb")
    assert failed.code == 1
    assert "very-secret" not in failed.err
    for path in failed.run_dir.rglob("*"):
        if path.is_file():
            assert b"very-secret" not in path.read_bytes(), path
    assert "the token is [secret left out]" in failed.printed


def test_the_report_opens_offline_and_says_what_it_is(make, medkit) -> None:
    make(
        "from medkit.record.results import Metric, write_metrics\n"
        "auroc = Metric(0.8, 0.7, 0.9, 0.95, 50)\n"
        "write_metrics(run_dir + '/metrics.json', {'test/auroc': auroc})\n"
        "import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()\n"
        "from IPython.display import HTML\n"
        "display(HTML('<script src=\"https://example.org/x.js\"></script><b>&lt;shown&gt;</b>'))",
        name="job.ipynb",
    )
    done = medkit("run", "job.ipynb", "-p", "quick", "true", "-p", "csv_path", "<b>&.csv")
    page = (done.run_dir / "report.html").read_text()
    head, body = page.split("<main>")
    assert "default-src 'none'" in head
    assert not re.search(r"<(script|link|iframe|object)\b", head)
    assert not re.search(r"url\(\s*['\"]?http|@import", page)
    assert 'src="data:image/png;base64,' in body
    assert "quick run" in head
    assert "exactness not claimed" in head
    assert "95 % [0.7000, 0.9000]" in head
    assert "&lt;b&gt;&amp;.csv" in head
    assert "<b>&lt;shown&gt;</b>" in body


def test_each_figure_of_the_report_has_an_alternative_text(
    make, medkit, caplog: pytest.LogCaptureFixture
) -> None:
    path = make(
        "from IPython.display import SVG, display\n"
        "import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()\n"
        "display(SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"/>'))",
        "plt.plot([1, 2]); plt.show()",
        "plt.plot([1, 2])\ndisplay(plt.gcf(), metadata={'alt': 'its own'}); plt.close()",
    )
    nb = nbformat.read(path, as_version=4)
    nb.cells[1:1] = [nbformat.v4.new_markdown_cell("## Look & see\n\ntext")]
    nb.cells[3].metadata["alt"] = "two < three"
    nbformat.write(nb, path)
    done = medkit("run", "job.ipynb", "-p", "seed", "1")
    page = (done.run_dir / "report.html").read_text()
    found = [html.unescape(alt) for alt in re.findall(r'<img alt="([^"]*)"', page)]
    where = "Figure of code cell 2, Look & see"
    assert found == [where, where, "two < three", "its own"]
    assert page.count("<img") == 4
    assert "lternative text" not in done.err + caplog.text


def test_solutions_are_folded_in_the_report_but_for_one_that_failed(make, medkit) -> None:
    path = make("'an ' + 'answer'", "'in ' + 'view'", "1 / 0")
    nb = nbformat.read(path, as_version=4)
    nb.cells.insert(1, nbformat.v4.new_markdown_cell("in words"))
    for number in (1, 2, 4):
        nb.cells[number].metadata["tags"] = ["solution"]
    nbformat.write(nb, path)
    page = (medkit("run", "job.ipynb").run_dir / "report.html").read_text()
    main = page.split("<main>")[1].split("</main>")[0]
    words, answer, seen = re.split(r"</details>", main)
    for folded in (words, answer):  # closed: without the attribute "open"
        assert '<details class="solution"><summary>Solution</summary>' in folded
    assert "in words" in words.split("<details")[1]
    assert "'an answer'" in answer.split("<details")[1]
    assert "'in view'" in seen
    assert "ZeroDivisionError" in seen


def test_a_failed_run_has_a_report_with_its_error(make, medkit) -> None:
    make("raise ValueError('a < b')")
    failed = medkit("run", "job.ipynb")
    page = Path(failed.run_dir / "report.html").read_text()
    assert '<strong class="mark failed">failed</strong>' in page
    assert "ValueError: a &lt; b" in page
