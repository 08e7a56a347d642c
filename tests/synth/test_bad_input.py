from __future__ import annotations

import pytest

from medkit.synth.best import best_possible
from medkit.synth.ehr import make_hospitals


@pytest.mark.parametrize("stays", [{}, {"A": 0}, {"A": -5}, {"A": 5.5}, {"Z": 5}])
def test_hospitals_without_whole_patients_are_refused(stays: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"positive whole number for some of the sites A, B and C"):
        make_hospitals(stays=stays)


@pytest.mark.parametrize(("stays", "draw"), [({}, 10), ({"A": 0}, 10), ({"A": -1, "B": 2}, 10)])
def test_the_best_rule_of_no_hospital_is_refused(stays: dict[str, int], draw: int) -> None:
    with pytest.raises(ValueError, match=r"a positive share for one site at least.*stays=\{'C'"):
        best_possible(stays=stays, draw=draw)


def test_the_best_rule_on_no_encounter_is_refused() -> None:
    with pytest.raises(ValueError, match=r"draw be 1 or more; got .* and 0\. stays="):
        best_possible(draw=0)
