"""Rewards by name and weight, and what each function pays for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest

from medkit.data.report_schema import LUNG_NODULE, NODULE
from medkit.synth.reports import make_studies
from medkit.vlm.rewards import REWARDS, Rewards

THERE = {"nodule": True, "side": "left", "zone": "upper", "size": "small", "density": "solid"}
RIGHT = '{"nodule":true,"side":"left","zone":"upper","size":"small","density":"solid"}'
NOTHING = '{"nodule":false}'


def one(name: str, text: str, **columns: Any) -> float:
    (score,) = REWARDS[name]([text], **{key: [value] for key, value in columns.items()})
    return score


def words(completions: Sequence[str], *, scale: Sequence[float], **_: Any) -> list[float]:
    """A reward of somebody's own."""
    return [len(text.split()) * factor for text, factor in zip(completions, scale, strict=True)]


class Shouting:
    """One written as a class, as ms-swift's are."""

    def __call__(self, completions: Sequence[str], **columns: Any) -> list[float]:
        return [float(text.isupper()) for text in completions]


def not_a_number(completions: Sequence[str]) -> list[float]:
    return [float("nan") for _ in completions]


def test_only_what_the_schema_allows_is_valid() -> None:
    texts = [RIGHT, NOTHING, '{"nodule":true}', "A nodule.", RIGHT + " "]
    assert REWARDS["validity"](texts) == [1.0, 1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("text", "true", "score"),
    [
        (RIGHT, THERE, 1.0),
        (RIGHT.replace("left", "right"), THERE, 0.8),
        (NOTHING, {"nodule": False}, 1.0),
        (RIGHT, {"nodule": False}, -0.5),
        (NOTHING, THERE, -1.0),
        ("a nodule", THERE, -1.0),
    ],
)
def test_missing_a_nodule_costs_more_than_inventing_one(
    text: str, true: dict[str, Any], score: float
) -> None:
    assert one("fields", text, fields=true) == pytest.approx(score)


def test_no_constant_answer_earns_near_what_the_true_fields_do() -> None:
    true = [study.fields for study in make_studies(100)]
    details = product(*(field.values for field in NODULE.fields))
    constants = [NOTHING] + [
        NODULE.text(dict(zip(NODULE.names, (True, *one), strict=True))) for one in details
    ]
    means = [sum(REWARDS["fields"]([text] * 100, fields=true)) / 100 for text in constants]
    assert means[0] == min(means) < -0.6  # silence is the worst of them
    assert 0.4 < max(means) < 0.6


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Left effusion and a nodule.", 1.0),
        ("Left effusion.", 0.0),  # one of two right, one missed
        ("Left effusion, a nodule, and edema.", 0.75),
        ("Left effusion. Possible nodule.", 0.5),
        ("Left effusion and a nodule. Possible edema.", 0.875),
        ("No effusion. No nodule.", -1.0),
    ],
)
def test_findings_are_paid_for_against_what_was_coded(text: str, score: float) -> None:
    coded = {"Effusion": True, "Nodule": True, "Edema": False}
    assert one("findings", text, findings=coded) == pytest.approx(score)


def test_hedging_everything_earns_less_than_a_normal_report_where_nothing_is_coded() -> None:
    coded = {"Effusion": False, "Nodule": False}
    hedged = one("findings", "Possible effusion. Nodule cannot be excluded.", findings=coded)
    assert hedged < one("findings", "No effusion. No nodule.", findings=coded) == 1.0


def test_a_finding_the_labeller_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match=r"among .* got \['Nodul'\]\. Rename"):
        one("findings", "", findings={"Nodul": True})


def test_the_right_finding_on_the_wrong_side_earns_less() -> None:
    reference = "Effusion in the left lower lobe."
    wrong = one("anatomy", "Effusion in the right lower lobe.", reference=reference)
    assert 0 < wrong < one("anatomy", reference, reference=reference) == 1.0


def test_naming_every_place_costs_precision() -> None:
    everywhere = "Left and right, upper, middle and lower effusion."
    assert one("anatomy", everywhere, reference="Left lower effusion.") < 0.6


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("No pneumothorax. No consolidation. Effusion.", 1.0),
        ("No pneumothorax. Effusion.", 0.5),
        ("Pneumothorax. Effusion.", 0.0),
        ("No pneumothorax, consolidation, or effusion.", 0.0),  # denies what is there
    ],
)
def test_denying_what_the_reference_denies_is_paid_and_what_it_asserts_punished(
    text: str, score: float
) -> None:
    reference = "Effusion. No pneumothorax or consolidation."
    assert one("negatives", text, reference=reference) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Effusion.", 0.0),
        ("", 0.0),
        ("Effusion. Edema.", -0.5),
        ("Effusion. Possible edema.", -0.25),
        ("Effusion. Possible pneumonia.", 0.0),  # the reference holds it possible too
    ],
)
def test_inventing_costs_twice_what_hedging_does(text: str, score: float) -> None:
    reference = "Effusion. Pneumonia cannot be excluded. No edema."
    assert one("restraint", text, reference=reference) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("A nodule of 8 mm.", 1.0),
        ("A nodule of 0.9 cm.", 1.0),
        ("A nodule of 8 x 6 mm.", 1.0),
        ("A nodule of 12 mm.", 0.0),
        ("A nodule.", 0.0),
        ("4 mm, 8 mm, 12 mm and 16 mm.", 0.25),
    ],
)
def test_a_size_counts_within_its_tolerance_and_once(text: str, score: float) -> None:
    assert one("size", text, reference="Nodule, 7.5 mm.") == score


def test_the_tolerance_of_sizes_can_be_set() -> None:
    rewards = Rewards({"size": 1.0}, settings={"tolerance_mm": 0.5})
    assert rewards(["8 mm", "8 mm"], reference=["7.5 mm", "7 mm"]).total == [1.0, 0.0]


def test_length_is_paid_for_symmetrically() -> None:
    assert one("length", "a b", reference="a b c d") == one("length", "a b c d", reference="a b")
    assert one("length", "", reference="a b") == 0.0


def test_the_total_is_the_weighted_sum_and_each_part_is_kept() -> None:
    rewards = Rewards({"validity": 1.0, "fields": 2.0})
    scored = rewards([RIGHT, "nonsense"], fields=[THERE, THERE])
    assert scored.parts == {"validity": [1.0, 0.0], "fields": [1.0, -1.0]}
    assert scored.total == [3.0, -2.0]


def test_the_schema_can_be_set() -> None:
    text = '{"nodule":true,"lobe":"left upper","size_mm":9,"category":"2"}'
    rewards = Rewards({"validity": 1.0}, settings={"schema": LUNG_NODULE})
    assert rewards([text, RIGHT]).total == [1.0, 0.0]


def test_columns_that_no_reward_names_are_ignored() -> None:
    assert Rewards({"validity": 1.0})([NOTHING], images=["a.png"], patient=["p"]).total == [1.0]


def test_a_function_and_a_class_of_ones_own_are_found_by_name() -> None:
    here = __name__
    rewards = Rewards({f"{here}:words": 1.0, f"{here}:Shouting": 10.0})
    assert rewards(["NO NODULE", "no"], scale=[1.0, 2.0]).total == [12.0, 2.0]


def test_a_typo_in_a_name_is_answered_with_the_known_names() -> None:
    with pytest.raises(ValueError, match=r"one of \['anatomy', .*got 'validty'.*'validity'\?"):
        Rewards({"validty": 1.0})


def test_a_function_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be a function that can be imported; .*'nothing'"):
        Rewards({f"{__name__}:nothing": 1.0})


@pytest.mark.parametrize(
    "weights", [{}, {"validity": float("nan")}, {"fields": "1"}, {len: 1.0}, ["fields"]]
)
def test_rewards_must_be_named_with_finite_weights(weights: Any) -> None:
    found = re.escape(repr(weights))
    with pytest.raises(
        ValueError,
        match=rf"got {found}\. Known names.*weights are numbers.*'package.module:function'",
    ):
        Rewards(weights)


def test_a_setting_nobody_takes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\['tolerance'\] is taken by none of \['size'\]"):
        Rewards({"size": 1.0}, settings={"tolerance": 1.0})


def test_a_missing_column_is_named() -> None:
    with pytest.raises(ValueError, match=r"'fields' needs column 'fields'; got \['report'\]\. Add"):
        Rewards({"fields": 1.0})([NOTHING], report=["x"])


def test_a_column_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one value a completion, got 1 for 2\. Repeat"):
        Rewards({"length": 1.0})(["a", "b"], reference=["a"])


def test_a_reward_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one finite number a completion .1., got .nan.*Return"):
        Rewards({f"{__name__}:not_a_number": 1.0})(["a"])


def test_a_truth_of_another_schema_is_refused_and_the_setting_named() -> None:
    lung = {"nodule": True, "lobe": "left upper", "size_mm": 7, "category": "3"}
    answer = LUNG_NODULE.text(lung)
    with pytest.raises(ValueError, match=r'row 0 has keys .*settings=\{"schema": \.\.\.\}'):
        Rewards({"fields": 1.0, "validity": 1.0})([answer], fields=[lung])
    named = Rewards({"fields": 1.0, "validity": 1.0}, settings={"schema": LUNG_NODULE})
    assert named([answer], fields=[lung]).total == [2.0]
