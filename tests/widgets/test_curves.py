"""What the monitor remembers stays small and true; what it draws can be read."""

from __future__ import annotations

import math

import pytest

from medkit.plot import COLORS
from medkit.widgets.curves import MAX_POINTS, History, Thinned, draw


def line_of(values: list[float]) -> Thinned:
    line = Thinned()
    for x, y in enumerate(values):
        line.add(x, y)
    return line


def test_a_short_line_is_kept_as_it_is() -> None:
    line = line_of([3.0, 1.0, 2.0])
    assert (line.x, line.y) == ([0, 1, 2], [3.0, 1.0, 2.0])


@pytest.mark.parametrize("count", [MAX_POINTS, 10 * MAX_POINTS, 100_000])
def test_a_long_line_keeps_its_mean_in_few_points(count: int) -> None:
    line = line_of([float(i % 7) for i in range(count)])
    assert MAX_POINTS / 2 <= len(line.x) < MAX_POINTS
    used = len(line.x) * line.stride
    mean = sum(i % 7 for i in range(used)) / used
    assert sum(line.y) / len(line.y) == pytest.approx(mean, abs=1e-9)
    assert line.x[-1] == used - 1


def test_a_line_goes_on_from_its_state_as_if_nothing_had_been() -> None:
    values = [math.sin(i) for i in range(3 * MAX_POINTS)]
    first, second = line_of(values[:777]), Thinned()
    second.load(first.state())
    for x in range(777, len(values)):
        second.add(x, values[x])
    assert second.state() == line_of(values).state()


def history_of(losses: list[float]) -> History:
    history = History()
    for step, loss in enumerate(losses):
        history.batches.add(step, loss)
    history.epochs.add(len(losses), 0.5)
    history.log(len(losses), {"val/loss": 0.4, "val/auroc": 0.8})
    return history


def test_a_step_is_logged_once() -> None:
    history = history_of([1.0])
    history.log(1, {"val/auroc": 0.1})
    assert history.logged["val/auroc"].y == [0.8]


def test_each_axis_has_a_name_and_the_loss_its_unit() -> None:
    figure = draw(history_of([1.0, 0.5]), loss_label="loss [nats per encounter]")
    loss, auroc = figure.axes
    assert loss.get_ylabel() == "loss [nats per encounter]"
    assert [ax.get_xlabel() for ax in figure.axes] == ["optimizer step"] * 2
    assert auroc.get_title() == "val/auroc 0.800"
    labels = [text.get_text() for text in loss.get_legend().get_texts()]
    assert labels == ["each batch", "mean of the epoch 0.500", "val/loss 0.400"]
    assert {line.get_color() for ax in figure.axes for line in ax.get_lines()} <= set(COLORS)


def test_the_metrics_asked_for_are_drawn_and_no_others() -> None:
    assert len(draw(history_of([1.0]), metrics=[]).axes) == 1
    assert len(draw(history_of([1.0]), metrics=["val/auroc", "val/f1"]).axes) == 3


def test_one_spike_does_not_flatten_the_rest_and_is_told() -> None:
    loss = draw(history_of([1.0] * 60 + [1e6])).axes[0]
    assert loss.get_ylim()[1] < 10
    assert "1e+06" in loss.get_title()


def test_a_change_in_the_third_digit_does_not_fill_the_axis() -> None:
    history = history_of([1.0])
    history.log(2, {"val/auroc": 0.801})
    low, high = draw(history).axes[1].get_ylim()
    assert high - low > 0.03


@pytest.mark.parametrize("losses", [[], [float("nan")] * 30, [float("inf"), 1.0]])
def test_a_loss_that_is_no_number_is_drawn_without_complaint(losses: list[float]) -> None:
    history = history_of(losses)
    history.log(99, {"val/auroc": float("nan")})
    draw(history).canvas.draw()


def test_a_notebook_shows_a_figure_that_pyplot_does_not_know() -> None:
    assert draw(history_of([1.0]))._repr_png_().startswith(b"\x89PNG")
