"""What guards did is told apart, counted, and drawn where it happened."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.figure import Figure

from medkit.widgets.curves import History, draw
from medkit.widgets.marks import KINDS, draw_marks, marks, said


def line(action: str, step: int | None = 5, **more: Any) -> dict[str, Any]:
    return {"step": step, "event": "x", "action": action, "detail": "", "rows": []} | more


@pytest.mark.parametrize(
    ("action", "kind"),
    [
        ("step skipped", "step skipped"),
        ("rolled back to the last good state", "rollback"),
        ("rows set aside", "row set aside"),
        ("row set aside, redrawn", "row set aside"),
        ("batch split into parts of at most 16 samples", "batch split"),
        ("raised to 0.3", "change of strength"),
        ("training stopped", "stop"),
        ("new workers started", "other intervention"),
    ],
)
def test_each_intervention_has_its_kind(action: str, kind: str) -> None:
    assert [mark.kind for mark in marks([line(action)])] == [kind]
    assert kind in {one.name for one in KINDS}


def test_what_belongs_to_no_step_or_another_stage_is_passed_over() -> None:
    lines = [line("warned", None), line("step skipped", stage="a"), line("step skipped", stage="b")]
    assert len(marks(lines)) == 2
    assert len(marks(lines, stage="a")) == 1


def test_a_mark_says_the_strength_and_the_rate() -> None:
    back = line("rolled back", detail="learning rates x 0.25 from now on, attempt 2")
    found = marks([back, line("lowered to 0.3"), line("set to 1e-05"), line("step skipped")])
    assert {mark.text for mark in found} == {"lr × 0.25", "0.3", "1e-05", ""}
    assert marks([line("raised to 0.166667")])[0].text == "0.17"


def test_they_are_counted_by_rows_where_rows_were_set_aside() -> None:
    found = marks(
        [line("step skipped"), line("step skipped", 9), line("rows set aside", rows=[3, 4, 8])]
    )
    assert said(found) == ["2 steps skipped", "3 rows set aside"]
    assert said(marks([line("training stopped")])) == ["1 stop"]


def history() -> History:
    made = History()
    for step in range(1, 41):
        made.batches.add(step, 1 / step)
    made.log(40, {"val/loss": 0.1, "val/auroc": 0.8})
    return made


def test_marks_lie_at_their_steps_below_the_curves_with_a_legend() -> None:
    made = history()
    made.marks = marks([line("step skipped", 7), line("step skipped", 8), line("raised to 1", 20)])
    figure = draw(made)
    drawn = {one.get_label(): one for one in figure.axes[0].get_lines()}
    assert list(drawn["2 steps skipped"].get_xdata()) == [7, 8]
    assert list(drawn["1 change of strength"].get_xdata()) == [20]
    lowest = min(made.batches.y)
    assert max(drawn["2 steps skipped"].get_ydata()) < lowest
    assert min(figure.axes[0].get_yticks()) >= min(0, lowest)
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["2 steps skipped", "1 change of strength"]
    assert "1" in [text.get_text() for text in figure.axes[0].texts]
    assert not figure.axes[1].texts


def test_without_any_the_picture_is_as_before() -> None:
    figure = draw(history())
    assert figure.legends == []
    panel = Figure().subplots()
    limits = panel.get_ylim()
    assert draw_marks(panel, []) == []
    assert panel.get_ylim() == limits


def test_texts_that_would_lie_on_one_another_are_left_out() -> None:
    made = history()
    made.marks = marks([line(f"raised to {n / 39}", n) for n in range(1, 40)])
    assert [text.get_text() for text in draw(made).axes[0].texts] == ["1"]
    made.marks = made.marks[::13]
    assert [text.get_text() for text in draw(made).axes[0].texts] == ["0.026", "0.36", "0.69"]
