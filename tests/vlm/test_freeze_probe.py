from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="the extra vlm is not installed")

from medkit import keyed
from medkit.data.chat import ChatEncoder
from medkit.data.conversations import Conversation, read_conversations
from medkit.data.report_schema import NODULE
from medkit.synth.reports import make_studies, write_reports
from medkit.vlm.freeze_probe import POLICIES, probe_freeze_policy
from medkit.vlm.tutorial import tutorial_model, tutorial_pictures, tutorial_tokenizer

TOKENIZER = tutorial_tokenizer(["a"], pieces=NODULE.pieces())
ENCODER = ChatEncoder(TOKENIZER, tutorial_pictures)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("base")
    with keyed.globals_keyed(0, "init"):
        model: Any = tutorial_model(vocabulary=len(TOKENIZER), hidden=32, layers=1)
    model.save_pretrained(folder)
    return "medkit.vlm.hub:pretrained", {"model_id": str(folder)}


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Conversation]]:
    folder = tmp_path_factory.mktemp("reports")
    return {
        site: read_conversations(write_reports(folder, make_studies(12, site=site), name=site))
        for site in "AC"
    }


def sums(model: Any) -> dict[str, float]:
    """Judge a model by its weights, group by group, as far as they move."""
    whole = {"vision": 0.0, "llm": 0.0}
    for name, value in model.named_parameters():
        group = "vision" if "vision_tower" in name else "llm" if "language_model" in name else ""
        if group:
            whole[group] += float(value.detach().double().abs().sum())
    return whole


def probed(base: Any, hospitals: Any, **settings: Any) -> Any:
    return probe_freeze_policy(
        base, ENCODER, hospitals["C"], sums, old=hospitals["A"], steps=2, batch_size=4, **settings
    )


def test_each_policy_begins_with_the_same_model_and_moves_its_part_alone(
    base: Any, hospitals: Any
) -> None:
    table = probed(base, hospitals).set_index("policy")
    assert list(table.index) == ["as it is", *POLICIES]
    start = table.loc["as it is"]
    assert table.loc["vision", "llm"] == start["llm"]
    assert table.loc["vision", "vision"] != start["vision"]
    assert table.loc["llm", "vision"] == start["vision"]
    assert table.loc["llm", "llm"] != start["llm"]
    assert 0 < table.loc["LoRA llm", "trained"] < table.loc["LoRA everywhere", "trained"] < 0.5
    assert table.loc["all", "trained"] == 1


def test_a_probe_is_a_function_of_its_seed_whatever_else_is_probed(
    base: Any, hospitals: Any
) -> None:
    some = {name: POLICIES[name] for name in ("vision", "LoRA everywhere")}
    both = probed(base, hospitals, policies=some, rehearsal=(0.0, 0.5), seeds=(3,))
    torch.manual_seed(99)
    one = {"LoRA everywhere": POLICIES["LoRA everywhere"]}
    alone = probed(base, hospitals, policies=one, rehearsal=(0.5,), seeds=(3,))
    assert both.iloc[-1].to_dict() == alone.iloc[-1].to_dict()
    assert both.iloc[1]["vision"] != both.iloc[3]["vision"]  # rehearsed


def test_a_rehearsal_without_old_studies_is_refused(base: Any, hospitals: Any) -> None:
    with pytest.raises(ValueError, match=r"rehearsal is a share below 1.*got 12 new, 0 old"):
        probe_freeze_policy(base, ENCODER, hospitals["C"], sums, rehearsal=(0.25,))
