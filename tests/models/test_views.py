from __future__ import annotations

import pytest
import torch

from medkit.models.classifier import LitClassifier
from medkit.models.views import TURNS, MeanOverTurns

NET = {"net": "medkit.models.ct_net:CandidateNet", "net_args": {"channels": (4, 4, 8)}}


def test_it_trains_as_the_net_and_answers_with_the_mean_over_turns() -> None:
    of, x = MeanOverTurns(**NET), torch.randn(3, 1, 16, 16, 16)  # type: ignore[arg-type]
    assert torch.equal(of(x), of.net(x))
    of.eval()
    one_by_one = [of.net(x), of.net(x.flip((2, 3))), of.net(x.flip((2, 4))), of.net(x.flip((3, 4)))]
    torch.testing.assert_close(of(x), sum(one_by_one) / 4)
    assert not torch.allclose(of(x), of.net(x))


def test_its_answer_is_the_same_for_a_patch_turned_round() -> None:
    of, x = MeanOverTurns(**NET).eval(), torch.randn(2, 1, 16, 16, 16)  # type: ignore[arg-type]
    for axes in TURNS:
        torch.testing.assert_close(of(x.flip(axes)), of(x))


def test_no_turn_mirrors_the_anatomy() -> None:
    assert all(len(axes) % 2 == 0 for axes in TURNS)


def test_a_checkpoint_can_rebuild_it() -> None:
    module = LitClassifier("medkit.models.views:MeanOverTurns", NET).eval()
    assert module(torch.zeros(2, 1, 16, 16, 16)).shape == (2,)


def test_what_cannot_be_turned_is_refused() -> None:
    of = MeanOverTurns(**NET)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must have the shape \(B, C, H, W, D\), got \(4, 7\)"):
        of(torch.zeros(4, 7))
