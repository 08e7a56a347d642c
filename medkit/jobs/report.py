"""The executed notebook as one HTML file that opens anywhere, with the run's facts on top."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

from medkit.jobs.ledger_tables import breaches, findings, interventions
from medkit.jobs.tables import comparisons, metric_rows
from medkit.record.files import write_text
from medkit.record.folder import RunFolder
from medkit.record.results import METRICS_NAME, Metric, read_metrics

REPORT_NAME = "report.html"
_FACTS = (
    *("notebook", "command", "seed", "split_seed", "start", "end", "interrupted_by", "cost"),
    *("git", "code_sha256", "notebook_sha256", "weights_sha256", "data", "hardware_class"),
    *("environment", "certificate"),
)
_TEMPLATE = """{%- extends 'basic/index.html.j2' -%}
{%- block any_cell -%}
{%- if 'solution' in cell.metadata.get('tags', [])
 and not cell.outputs | selectattr('output_type', 'equalto', 'error') | list -%}
<details class="solution"><summary>Solution</summary>{{ super() }}</details>
{%- else -%}{{ super() }}{%- endif -%}
{%- endblock any_cell -%}
{%- block data_svg -%}
<img alt="{{ output.metadata.alt | escape_html }}"
 src="data:image/svg+xml;base64,{{ output.data['image/svg+xml'] | text_base64 }}">
{%- endblock data_svg -%}
"""


def write_report(run: RunFolder) -> Path:
    """Write ``report.html``: no script, no link, no font from elsewhere.

    nbconvert's own pages load MathJax, RequireJS and Mermaid from the network. Its bare ``basic``
    template loads nothing; the style is ours, and a content policy in the page forbids the rest,
    whatever a cell has put out.
    """
    from jinja2 import Environment
    from markupsafe import Markup

    here = Path(__file__).parent
    cells, styles = _cells(run.path / "notebook.ipynb")
    facts, lines, metrics = run.read(), _lines(run), _metrics(run)
    page = Environment(autoescape=True, trim_blocks=True).from_string(
        (here / "report.html.j2").read_text(encoding="utf-8")
    )
    attempts = facts.get("attempts") or [{}]
    html = page.render(
        title=Path(str(facts.get("notebook", "run"))).stem,
        run=facts,
        error=attempts[-1].get("error", ""),
        comparisons=comparisons(metrics),
        metrics=metric_rows(metrics),
        findings=findings(lines),
        broken=breaches(lines, agreed=False),
        agreed=breaches(lines, agreed=True),
        parameters=[(n, json.dumps(v)) for n, v in facts.get("parameters", {}).items()],
        ledger=interventions(lines),
        facts=[(name, _said(facts[name])) for name in _FACTS if facts.get(name)],
        cells=Markup(cells),  # nbconvert has escaped what is text
        css=Markup((here / "report.css").read_text(encoding="utf-8") + styles),
    )
    path = run.path / REPORT_NAME
    write_text(path, html)
    return path


def _cells(notebook: Path) -> tuple[str, str]:
    if not notebook.is_file():
        return "<p>No notebook was written.</p>", ""
    import nbformat
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter

    quiet = logging.getLogger(f"{__name__}.nbconvert")  # it misses what HTML of others lacks
    quiet.setLevel(logging.ERROR)
    exporter = HTMLExporter(
        raw_template=_TEMPLATE, template_name="basic", embed_images=True, log=quiet
    )
    nb = nbformat.read(notebook, as_version=4)
    for cell in nb.cells:
        for out in cell.get("outputs", []):
            # scripts don't run here: without this kind the picture or the text is shown
            out.get("data", {}).pop("application/javascript", None)
    _describe_figures(nb.cells)
    resources = {"metadata": {"path": str(notebook.parent)}}
    body, _ = exporter.from_notebook_node(nb, resources=resources)
    return body, HtmlFormatter().get_style_defs(".highlight")


def _describe_figures(cells: list[Any]) -> None:
    """Give figures an alternative text: the cell's ``alt`` metadata, else where they stand."""
    number, section = 0, ""
    for cell in cells:
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#+ +(.+)", cell.source, re.MULTILINE)
            section = f", {headings[-1]}" if headings else section
        injected = "injected-parameters" in cell.metadata.get("tags", [])
        number += cell.cell_type == "code" and not injected
        alt = str(cell.metadata.get("alt") or f"Figure of code cell {number}{section}")
        for out in cell.get("outputs", []):
            if "data" in out:
                out.setdefault("metadata", {}).setdefault("alt", alt)


def _metrics(run: RunFolder) -> dict[str, Metric]:
    path = run.path / METRICS_NAME
    return read_metrics(path) if path.is_file() else {}


def _lines(run: RunFolder) -> list[dict[str, Any]]:
    return run.ledger.read() if run.ledger.path.is_file() else []


def _said(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{k}: {v}" for k, v in sorted(value.items()))
    return str(value)
