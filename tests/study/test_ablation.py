from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from medkit import plot
from medkit.metrics.stability import convergence_band, paired_correlation, spread_ratio
from medkit.metrics.two_level import Placed
from medkit.study.ablation import Ablation, Practice
from medkit.study.effects import MORE, Effect, Effects
from medkit.study.outcomes import Outcome

PRACTICES = [
    Practice("calm", on={"wild": 0.01}, off={"wild": 0.04}),
    Practice("skill", on={"skill": 1.5}, off={"skill": 0.5}),
    Practice("idle", on={"idle": True}, off={"idle": False}, used=False),
]


def ablation(**more: Any) -> Ablation:
    return Ablation(PRACTICES, common={"common": 1}, **more)


def train(
    recipe: Mapping[str, Any], seeds: Sequence[int], split_seed: int, site: str
) -> Iterator[Outcome]:
    """Losses spread by "wild", scores separated by "skill"; "idle" does nothing."""
    rows = np.random.default_rng([split_seed, len(site)])
    y = (np.arange(200) % 4 == 0).astype(int)
    noise = rows.normal(size=200)
    for seed in seeds:
        own = np.random.default_rng([seed, split_seed])
        more = np.random.default_rng([seed, int(1000 * recipe["wild"])]).normal()
        ends = 0.3 + recipe["wild"] * (0.8 * own.normal() + 0.6 * more)
        score = recipe["skill"] * y + noise + 0.2 * own.normal(size=200)
        frame = pd.DataFrame({"patient": np.arange(200), "y": y, "score": score})
        yield Outcome(
            recipe="",
            seed=seed,
            steps=np.arange(1, 9),
            curves={"val/loss": np.full(8, ends)},
            metrics={"test/auroc": float(Placed.of(y, [score]).auroc[0]), "test/odd": ends},
            predictions=frame.sample(frac=1, random_state=seed),
        )


def run(
    of: Ablation, *, splits: Sequence[int] = (0,), sites: Sequence[str] = ("",)
) -> list[Outcome]:
    """What a study of 8 seeds would leave, without its folder."""
    return [
        replace(outcome, recipe=name, split_seed=split, site=site)
        for name, recipe in of.arms().items()
        for split in splits
        for site in sites
        for outcome in train(recipe, range(8), split, site)
    ]


def one(effects: Effects, practice: str, way: str) -> Effect:
    (found,) = [row for row in effects.rows if (row.practice, row.way) == (practice, way)]
    return found


def outcomes_of(arms: Mapping[str, list[float | None]]) -> list[Outcome]:
    """Arms of one metric, a value per seed; None is a training that failed."""
    return [
        Outcome(recipe=name, seed=seed, status="failed")
        if value is None
        else Outcome(recipe=name, seed=seed, metrics={"val/f1": value})
        for name, values in arms.items()
        for seed, value in enumerate(values)
    ]


def test_arms_are_the_recipe_with_each_practice_left_out_and_the_start_with_each_added() -> None:
    arms = ablation(pairs=[("calm", "skill")]).arms()
    on = {"common": 1, "wild": 0.01, "skill": 1.5, "idle": False}
    off = on | {"wild": 0.04, "skill": 0.5}
    assert arms == {
        "recipe": on,
        "start": off,
        "recipe without calm": on | {"wild": 0.04},
        "start with calm": off | {"wild": 0.01},
        "recipe without skill": on | {"skill": 0.5},
        "start with skill": off | {"skill": 1.5},
        "recipe with idle": on | {"idle": True},
        "start with idle": off | {"idle": True},
        "recipe without calm and skill": off,
        "start with calm and skill": on,
    }


def test_only_the_ways_asked_for_are_trained() -> None:
    assert list(ablation(ways=["left out"]).arms()) == [
        "recipe",
        "start",
        "recipe without calm",
        "recipe without skill",
    ]


def test_a_start_that_has_a_practice_is_not_trained_with_it_again() -> None:
    arms = ablation(start=["skill"], ways=["added"]).arms()
    assert list(arms) == ["recipe", "start", "nothing", "start with calm", "start with idle"]
    assert (arms["start"]["skill"], arms["nothing"]["skill"]) == (1.5, 0.5)


def test_the_study_of_all_arms_trains_them(tmp_path: Path) -> None:
    of = ablation(fixed={"alone": {"skill": 9.0}}, ways=["left out"])
    assert of.arms()["alone"] == of.arms()["recipe"] | {"skill": 9.0}
    study = of.study(tmp_path / "s", seeds=range(2))
    study.run(train)
    found = of.effects(study.outcomes)
    assert {name: arm.runs for name, arm in found.arms.items()} == dict.fromkeys(
        ["recipe", "start", "recipe without calm", "recipe without skill"], 2
    ) | {"alone": 1}


@pytest.mark.parametrize(
    "more",
    [
        {"pairs": [("calm", "cool")]},
        {"pairs": [("calm", "idle")]},
        {"start": ["cool"]},
        {"ways": ["sideways"]},
    ],
)
def test_names_that_are_not_known_are_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"practices with a name each.*unknown \['\w+'\].*Spell"):
        ablation(**more)


def test_a_practice_that_calms_is_seen_in_the_band_and_one_that_helps_in_auroc() -> None:
    of = ablation()
    found = of.effects(run(of))
    calm, skill = one(found, "calm", "left out"), one(found, "skill", "left out")
    assert 2 < calm.wider.low < 4 < calm.wider.high < 8  # type: ignore[operator]
    assert calm.gain.value == 0
    assert skill.wider.value == 1
    assert 0.1 < skill.gain.low < skill.gain.value < 0.4  # type: ignore[operator]
    said = str(found)
    ratio = f"{calm.wider.value:.2f} [{calm.wider.low:.2f}, {calm.wider.high:.2f}]"
    assert f"calm (left out): the band is {ratio} times as wide without it." in said
    assert "skill (left out): it raises test AUROC by 0." in said
    assert "idle (tried): never acted, all numbers are the same bit for bit." in said
    assert "Of 12 intervals of 95 % about 1 would leave out no effect by chance alone." in said


def test_the_gain_is_the_two_level_t_and_the_ratio_is_that_of_paired_bands() -> None:
    of = ablation(ways=["left out"])
    outcomes = run(of)

    def placed(arm: str) -> Placed:
        frames = [o.predictions.sort_values("patient") for o in outcomes if o.recipe == arm]  # type: ignore[union-attr]
        # ids are compared as text: the order of rows does not matter to AUROC
        return Placed.of(frames[0]["y"], [frame["score"] for frame in frames])

    def curves(arm: str) -> Any:
        return [o.curves["val/loss"] for o in outcomes if o.recipe == arm]

    found = of.effects(outcomes)
    skill = one(found, "skill", "left out").gain
    want = placed("recipe").minus(placed("recipe without skill"), paired=True)
    assert (skill.value, skill.low, skill.high) == pytest.approx((want.value, *want.limits()))
    assert (skill.n, skill.method[:11]) == (8, "two-level t")
    arms = [curves("recipe without calm"), curves("recipe")]
    ratio = spread_ratio(*map(convergence_band, arms), r=paired_correlation(*arms, last=0.25))
    assert one(found, "calm", "left out").wider == ratio


def test_two_practices_that_need_each_other_add_more_than_their_sum() -> None:
    values = {
        "start": [0.50, 0.51, 0.50, 0.49, 0.50],
        "start with calm": [0.50, 0.50, 0.50, 0.50, 0.50],
        "start with skill": [0.50, 0.51, 0.49, 0.50, 0.50],
        "start with calm and skill": [0.65, 0.66, 0.65, 0.64, 0.65],
    }
    of = ablation(pairs=[("calm", "skill")], ways=["pairs"])
    found = of.effects(outcomes_of(values), metric="val/f1")
    more = one(found, "calm and skill", MORE)
    each = [d + a - b - c for a, b, c, d in zip(*values.values(), strict=True)]
    assert more.gain.value == pytest.approx(np.mean(each))
    assert more.sentence("F1") == (
        f"calm and skill (more than their sum): it raises F1 by {more.gain.value:.3f} "
        f"[{more.gain.low:.3f}, {more.gain.high:.3f}]; beyond what the two do alone."
    )


def test_other_metrics_are_paired_by_seed_and_say_that_they_are_for_these_patients() -> None:
    values = {
        "recipe": [0.6, 0.7, 0.8, 0.7, 0.9],
        "recipe without skill": [0.5, 0.6, 0.7, 0.5, 0.9],
    }
    found = ablation().effects(outcomes_of(values), metric="val/f1")
    gain = one(found, "skill", "left out").gain
    difference = np.array([0.1, 0.1, 0.1, 0.2, 0.0])
    half = 2.776445 * difference.std(ddof=1) / math.sqrt(5)
    assert (gain.value, gain.low) == pytest.approx((0.1, 0.1 - half), abs=1e-6)
    assert gain.method.startswith("t over seeds, these patients")
    assert found.label == "val f1"


def test_trainings_that_failed_are_named_and_the_rest_is_paired() -> None:
    values = {
        "recipe": [0.6, 0.7, 0.8, 0.7, 0.9, 0.8],
        "recipe without skill": [0.5, None, 0.7, 0.5, 0.9, 0.8],
    }
    found = ablation().effects(outcomes_of(values), metric="val/f1")
    skill = one(found, "skill", "left out")
    assert (skill.gain.n, skill.failed_without, skill.failed_with) == (5, 1, 0)
    assert skill.gain.value == pytest.approx(0.08)
    assert "1 training failed without it" in skill.sentence("F1")
    assert found.table().set_index("practice")["failed"]["skill"] == 1
    assert found.arms["recipe without skill"].failed == 1


def test_a_training_without_curves_makes_the_band_infinite() -> None:
    of = ablation(ways=["left out"])
    outcomes = run(of)
    dead = Outcome(recipe="recipe without calm", seed=99, status="failed")
    found = of.effects([*outcomes, dead])
    assert found.arms["recipe without calm"].spread.value == math.inf
    assert one(found, "calm", "left out").wider.value == math.inf


def test_fewer_than_five_seeds_give_no_interval() -> None:
    values = {"recipe": [0.6, 0.7, 0.8], "recipe without skill": [0.5, 0.6, 0.6]}
    found = ablation().effects(outcomes_of(values), metric="val/f1")
    gain = one(found, "skill", "left out").gain
    assert (gain.low, gain.method) == (None, "no interval: fewer than 5 seeds")
    few = ablation(ways=["left out"])
    band = one(few.effects(o for o in run(few) if o.seed < 4), "calm", "left out").wider
    assert (band.low, band.n) == (None, 4)
    assert "no interval below 5 trainings" in band.method
    assert found.sentences() == [
        "skill (left out): nothing can be said; no interval: fewer than 5 seeds."
    ]


def test_sites_count_alike_and_their_patients_are_independent() -> None:
    of = ablation(ways=["left out"])
    outcomes = run(of, sites=["A", "BB"])

    def gain(*sites: str) -> Any:
        part = [o for o in outcomes if o.site in sites]
        return one(of.effects(part), "skill", "left out").gain

    both, a, b = gain("A", "BB"), gain("A"), gain("BB")
    assert both.value == pytest.approx((a.value + b.value) / 2)
    width = both.high - both.low
    assert width == pytest.approx(math.hypot(a.high - a.low, b.high - b.low) / 2, rel=0.05)


def test_free_splits_of_one_training_are_left_out_where_there_are_others() -> None:
    of = ablation(ways=["left out"])
    outcomes = run(of)
    free = [replace(one, split_seed=5 + one.seed) for one in outcomes]
    assert of.effects([*outcomes, *free]).rows == of.effects(outcomes).rows
    alone = one(of.effects(free), "calm", "left out")
    assert (alone.gain.low, alone.wider.low) == (None, None)


def test_splits_of_one_site_do_not_count_as_other_patients() -> None:
    of = ablation(ways=["left out"])
    outcomes = run(of, splits=[0, 1])
    part = [o for o in outcomes if o.split_seed == 0]
    both, single = (one(of.effects(o), "skill", "left out").gain for o in (outcomes, part))
    assert both.high - both.low > 0.9 * (single.high - single.low)  # not 0.7
    calm = one(of.effects(outcomes), "calm", "left out").wider
    assert calm.n == 15


def test_arms_scored_on_other_rows_are_refused() -> None:
    of = ablation(ways=["left out"])
    outcomes = run(of)
    last = outcomes[-1]
    other = last.predictions.assign(y=0)  # type: ignore[union-attr]
    odd = Outcome(recipe="recipe", seed=77, metrics=last.metrics, predictions=other)
    with pytest.raises(ValueError, match="y must be the same for all seeds"):
        of.effects([*outcomes, odd])


def test_arms_that_were_split_differently_are_refused() -> None:
    of = ablation(ways=["left out"])
    outcomes = [
        replace(one, predictions=one.predictions.query("patient > 0"))  # type: ignore[union-attr]
        if one.recipe == "start" or "calm" in one.recipe
        else one
        for one in run(of)
    ]
    with pytest.raises(ValueError, match="both recipes must score the same rows"):
        of.effects(outcomes)


def test_a_metric_that_is_nowhere_is_refused() -> None:
    of = ablation(ways=["left out"])
    with pytest.raises(ValueError, match=r"metric 'test/f1'; found \['test/auroc', 'test/odd'\]"):
        of.effects(run(of), metric="test/f1")


def test_another_spread_and_curve_can_be_asked_for() -> None:
    def arm(name: str, ends: list[float]) -> list[Outcome]:
        return [
            Outcome(
                recipe=name,
                seed=seed,
                steps=np.array([1, 2]),
                curves={"val/auroc": [0.5, end]},  # type: ignore[dict-item]
                metrics={"val/f1": end},
            )
            for seed, end in enumerate(ends)
        ]

    outcomes = [*arm("recipe", [0.8, 0.82]), *arm("recipe without calm", [0.7, 0.78])]
    found = ablation().effects(outcomes, metric="val/f1", curve="val/auroc", spread="late")
    want = (0.08 / 0.24) / (0.02 / 0.31)
    assert one(found, "calm", "left out").wider.value == pytest.approx(want)


def test_effects_go_into_tables_metrics_and_a_figure() -> None:
    of = ablation(pairs=[("calm", "skill")])
    found = of.effects(run(of))
    table = found.table()
    assert list(table.columns[:3]) == ["practice", "way", "gain"]
    assert len(table) == len(found.rows) == 9
    arms = found.arms_table().set_index("arm")
    assert arms.loc["recipe without calm", "band_%"] > 3 * arms.loc["recipe", "band_%"]
    assert "ablation/calm_left_out/wider" in found.metrics()
    figure, ax = plt.subplots()
    plot.effects(ax, found.of("wider"), xlabel="ratio", nothing=1, rows=found.practices)
    figure.canvas.draw()
    rows = [label.get_text() for label in ax.get_yticklabels()]
    assert rows == ["calm", "skill", "idle", "calm and skill"]
    plt.close(figure)
