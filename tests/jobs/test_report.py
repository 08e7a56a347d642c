"""The report: what a net is worth beside its rivals, and what was found in the data."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from medkit.data.contract.breaches import Broken
from medkit.data.contract.breaches import to_ledger as write_breaches
from medkit.data.leakage.findings import Finding
from medkit.data.leakage.findings import to_ledger as write_findings
from medkit.jobs.report import write_report
from medkit.jobs.tables import comparisons, metric_rows
from medkit.record.folder import RunFolder
from medkit.record.results import METRICS_NAME, Metric, write_metrics


def head_of(run: RunFolder) -> str:
    """Return what a reader sees above the cells, without tags."""
    head = write_report(run).read_text(encoding="utf-8").split("<main>")[0].split("<body>")[1]
    head = head.replace("<wbr>", "")
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", head)).split())


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", status="done", notebook="job.ipynb")


def between(low: float, high: float) -> Metric:
    return Metric((low + high) / 2, low, high, 0.95, 100)


@pytest.mark.parametrize(
    ("name", "metric", "verdict"),
    [
        ("auroc_minus_logistic", between(-0.01, 0.02), "use logistic regression"),
        ("auroc_minus_logistic", between(0.0, 0.02), "use logistic regression"),
        ("auroc_minus_logistic", between(-0.03, -0.01), "worse: use logistic regression"),
        ("auroc_minus_logistic", between(0.01, 0.02), "better than logistic regression"),
        ("c_index_minus_cox", between(-0.01, 0.02), "use penalised Cox regression"),
        (
            "auroc_minus_boosting",
            between(-0.01, 0.02),
            "not shown to differ from gradient boosting",
        ),
        ("auroc_minus_boosting", between(-0.03, -0.01), "worse: use gradient boosting"),
        ("auroc_minus_random_forest", between(0.01, 0.02), "better than random forest"),
        ("auroc_minus_best", between(-0.03, -0.01), "worse than the best possible rule"),
        (
            "auroc_minus_best",
            between(-0.01, 0.02),
            "not shown to differ from the best possible rule",
        ),
        ("brier_minus_logistic", between(0.01, 0.02), "worse: use logistic regression"),
        ("brier_minus_logistic", between(-0.02, -0.01), "better than logistic regression"),
        (
            "calibration_slope_minus_logistic",
            between(0.1, 0.2),
            "differs from logistic regression; which is better the difference does not say",
        ),
        (
            "auroc_minus_logistic",
            Metric(0.2),
            "without an interval nothing is shown: use logistic regression",
        ),
        ("auroc_minus_boosting", Metric(0.2), "without an interval nothing is shown"),
    ],
)
def test_what_an_interval_says_of_a_net_and_its_rival(
    name: str, metric: Metric, verdict: str
) -> None:
    [found] = comparisons({f"test/site_c/{name}": metric, "test/site_c/auroc": Metric(0.8)})
    assert found.verdict == verdict
    assert found.shown is verdict.startswith("better")


def test_a_net_that_beats_the_best_possible_rule_is_no_win() -> None:
    [found] = comparisons({"test/auroc_minus_best": between(0.2, 0.24)})
    assert found.verdict.endswith("which cannot be: is this the truth of these rows?")
    assert not found.shown


def test_the_models_main_numbers_come_first_and_its_rivals_behind() -> None:
    minor = ("auroc_minus_logistic", "calibration_intercept", "ece", "prevalence")
    main = ("auroc", "auprc", "brier", "calibration_slope")
    metrics = {
        f"{stage}{rival}/{name}": Metric(0.5)
        for stage in ("best", "val", "test", "test/site_b")
        for rival in ("", "/logistic")
        for name in (*minor, *main)
    }
    names = [row.name for row in metric_rows(metrics)]
    first = [f"{stage}/{name}" for stage in ("test", "test/site_b") for name in main]
    assert names[:8] == first
    assert names[8:16] == [name.replace(main[i % 4], minor[i % 4]) for i, name in enumerate(first)]
    assert names[16:20] == [f"test/logistic/{name}" for name in main]
    assert [name.split("/")[0] for name in names] == ["test"] * 32 + ["val"] * 16 + ["best"] * 16


def test_the_report_says_first_of_all_whether_the_net_is_worth_it(run: RunFolder) -> None:
    write_metrics(
        run.path / METRICS_NAME,
        {
            "test/auroc": between(0.7, 0.9),
            "test/auroc_minus_logistic": between(-0.01, 0.02),
            "test/kit/c_index_minus_cox": between(0.01, 0.03),
        },
    )
    said = head_of(run)
    one = "test: auroc minus that of logistic regression: +0.005000, 95 % [-0.01000, 0.02000]: "
    two = "test/kit: c_index minus that of penalised Cox regression: +0.02000, 95 % [0.01000, "
    assert one + "use logistic regression" in said
    assert two + "0.03000]: better than penalised Cox regression" in said
    assert said.index(one) < said.index("Metrics, as in metrics.json")


def test_a_job_ends_with_the_verdict_in_the_terminal(make, medkit) -> None:
    make(
        "from medkit.record.results import Metric, write_metrics\n"
        "gap = Metric(-0.01, -0.03, 0.01, 0.95, 50)\n"
        "write_metrics(run_dir + '/metrics.json', {'test/auroc_minus_logistic': gap})"
    )
    lines = medkit("run", "job.ipynb").out.splitlines()
    assert lines[-2] == (
        "test: auroc minus that of logistic regression: -0.01000 95 % [-0.03000, 0.01000]: "
        "use logistic regression"
    )
    assert lines[-1].startswith("report ")


def test_what_broke_the_contract_is_a_table_of_columns_and_sites(run: RunFolder) -> None:
    broken = [
        Broken("lactate", "A", "above 30 mmol/L", 3, (0, 4, 9), "set missing"),
        Broken("lactate", "B", "below 0 mmol/L", 12, (7,), "set missing"),
        Broken("sex", "", "none of the levels: <x>", 5, (1,), "set missing"),
        Broken("urea", "A", "coded as missing (0)", 40, (2,), "set missing", expected=True),
    ]
    for _ in range(2):  # a resumed run comes through here again
        write_breaches(broken, run.ledger)
    said = head_of(run)
    assert "Against the data contract: 20 cells in 2 columns at 2 sites" in said
    rows = [
        "lactate B below 0 mmol/L 12",
        "lactate A above 30 mmol/L 3",
        "sex none of the levels: <x> 5",
    ]
    places = [said.index(row) for row in rows]
    assert places == sorted(places)
    assert "As the data contract says: 40 cells in 1 column (codes" in said
    assert "urea A coded as missing (0) 40 set missing" in said


def test_hundreds_of_breaches_stay_readable(run: RunFolder) -> None:
    broken = [
        Broken(f"x{column}", site, "above 1", column + 1, (0,), "set missing")
        for column in range(50)
        for site in "ABCD"
    ]
    write_breaches(broken, run.ledger)
    page = write_report(run).read_text(encoding="utf-8")
    table = page.split("Against the data contract: 5,100 cells in 50 columns at 4 sites")[1]
    table = table.split("</table>")[0]
    assert table.count("<tr>") == 1 + 40 + 1
    assert "x49" in table
    assert "x0<" not in table
    hidden = 4 * sum(range(1, 41))
    assert f"and 160 more, in ledger.jsonl</th><td>{hidden:,}" in table


def test_hundreds_of_metrics_hide_nothing_and_are_folded(run: RunFolder) -> None:
    write_metrics(run.path / METRICS_NAME, {f"test/m{n:03}": Metric(0.5) for n in range(287)})
    page = write_report(run).read_text(encoding="utf-8")
    open_part, folded = page.split("<summary>247 more metrics</summary>")
    assert open_part.count("<th>test/<wbr>m") == 40
    assert folded.count("<th>test/<wbr>m") == 247


def test_a_metrics_name_breaks_after_its_slashes_only(run: RunFolder) -> None:
    write_metrics(run.path / METRICS_NAME, {"test/site_c/calibration_intercept": Metric(0.5)})
    page = write_report(run).read_text(encoding="utf-8")
    assert "<th>test/<wbr>site_c/<wbr>calibration_intercept</th>" in page
    assert not re.search(r"\.metrics tbody th {[^}]*anywhere", page)


def test_a_leak_is_in_the_report_with_its_evidence_and_remedy(run: RunFolder) -> None:
    findings = [
        Finding("note", "label shuffle", "as it must be."),
        Finding("suspicious", "order and ids", "the id knows the label.", {"p": 1e-9}, "Look."),
        Finding("leak", "exact duplicates", "9 <records> twice.", {"records": 9}, "Remove them."),
    ]
    write_findings(findings, run.ledger)
    said = head_of(run)
    leak = 'leak exact duplicates : 9 <records> twice. Remove them. {"records": 9}'
    assert leak in said
    assert said.index(leak) < said.index("suspicious order and ids : the id knows the label. Look.")
    assert "as it must be" not in said


def test_a_run_without_tables_has_no_word_of_contracts_leaks_or_rivals(run: RunFolder) -> None:
    write_metrics(run.path / METRICS_NAME, {"test/auroc": between(0.7, 0.9)})
    said = head_of(run)
    for word in ("contract", "leak", "minus"):
        assert word not in said


def test_interventions_and_rows_set_aside_are_in_the_report(run: RunFolder) -> None:
    place = {"stage": "fit", "epoch": 1, "batch": 7, "step": 20}
    run.ledger.append("loss spike", action="step skipped", **place, rows=["a1b2"])
    run.ledger.append(
        "unreadable sample",
        action="row set aside, redrawn",
        **place,
        rows=["c3<d4"],
        detail="OSError in load",
    )
    head = head_of(run)
    assert "Ledger: 2 interventions" in head
    assert "loss spike step skipped 1 1 1" in head
    assert "Rows set aside: 1" in head
    assert "c3<d4 unreadable sample: OSError in load epoch 1, batch 7" in head


def test_a_run_that_nothing_was_done_to_has_no_ledger_in_its_report(run: RunFolder) -> None:
    head = head_of(run)
    assert "Ledger" not in head
    assert "set aside" not in head
