from __future__ import annotations

from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

pytest.importorskip("transformers", reason="the extra vlm is not installed")

from medkit.data.chat import ChatEncoder
from medkit.data.conversations import Conversation, read_conversations
from medkit.data.pictures import read_picture
from medkit.data.report_schema import NODULE
from medkit.saliency.volume_maps import VolumeMaps
from medkit.vlm.map_figures import draw_fields, enlarged
from medkit.vlm.places import Asked, ask
from medkit.vlm.tutorial import tutorial_pictures, tutorial_tokenizer

SAMPLE = Path(__file__).parents[2] / "data_samples" / "reports"


@pytest.fixture(scope="module")
def one() -> Conversation:
    found = read_conversations(SAMPLE / "slices.jsonl")
    return next(c for c in found if c.columns["fields"]["nodule"])


@pytest.fixture(scope="module")
def asked(one: Conversation) -> Asked:
    tokenizer = tutorial_tokenizer(["a b"], pieces=NODULE.pieces())
    return ask(ChatEncoder(tokenizer, tutorial_pictures), one, schema=NODULE)


def test_a_cell_covers_its_pixels() -> None:
    values = torch.arange(16.0).view(1, 2, 2, 4)
    found = enlarged(VolumeMaps(values, "x", "1"), (4, 6)).values
    assert found.shape == (1, 4, 6, 4)
    for row in range(4):
        for column in range(6):
            assert torch.equal(found[0, row, column], values[0, row // 2, column // 3])


def test_a_figure_says_field_value_method_and_verdict_for_each_slice(
    one: Conversation, asked: Asked, tmp_path: Path
) -> None:
    maps = VolumeMaps(torch.rand(1, 4, 4, 3), "a method", "nat", verdict="do not use: by luck")
    figure = Figure(figsize=(8, 5))
    axes = draw_fields(figure, one, asked, {"side": maps, "zone": maps}, pixel_mm=4.0)
    assert axes.shape == (2, 3)
    for part, name in zip(figure.subfigs, ("side", "zone"), strict=True):
        said = part.get_suptitle()
        assert said.startswith(f"{name}: {asked.said[name]}")
        assert "a method; do not use: by luck" in said.replace("\n", " ")
    assert [ax.get_xlabel() for ax in axes[0]] == [f"slice {n} of 3" for n in (1, 2, 3)]
    figure.savefig(tmp_path / "figure.png")
    assert read_picture(tmp_path / "figure.png").std() > 0.05


def test_maps_of_other_pictures_or_fields_are_refused(one: Conversation, asked: Asked) -> None:
    maps = VolumeMaps(torch.rand(1, 4, 4, 3), "a method", "nat")
    for wrong in ({}, {"lobe": maps}, {"side": VolumeMaps(torch.rand(1, 4, 4, 1), "x", "1")}):
        with pytest.raises(ValueError, match="maps of fields that were said"):
            draw_fields(Figure(), one, asked, wrong)
