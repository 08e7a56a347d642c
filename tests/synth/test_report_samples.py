from __future__ import annotations

from pathlib import Path

import numpy as np

from medkit.data.conversations import read_conversations, read_report_table
from medkit.data.pictures import read_picture
from medkit.synth.report_samples import FIRST, main
from medkit.synth.reports import make_studies

SAMPLES = Path(__file__).parents[2] / "data_samples" / "reports"


def test_the_sample_is_what_the_command_writes(tmp_path: Path) -> None:
    main([str(tmp_path)])
    texts = sorted(one.name for one in tmp_path.iterdir() if one.is_file())
    assert len(texts) == 6
    for name in texts:
        assert (tmp_path / name).read_bytes() == (SAMPLES / name).read_bytes(), name
    images = sorted((tmp_path / "images").iterdir())
    assert {one.name for one in images} == {one.name for one in (SAMPLES / "images").iterdir()}
    for one in images:  # a PNG's bytes are its library's, its pixels are ours
        assert np.array_equal(read_picture(one), read_picture(SAMPLES / "images" / one.name))


def test_the_sample_is_small_and_reads_as_conversations_and_as_a_table() -> None:
    files = [*SAMPLES.glob("*.*"), *(SAMPLES / "images").iterdir()]
    assert sum(one.stat().st_size for one in files) < 1_000_000
    read = {name: read_conversations(SAMPLES / f"{name}.jsonl") for name in ("fields", "report")}
    table = read_report_table(SAMPLES / "reports.csv", images="image")
    assert len(table) == len(read["fields"]) == 80
    assert {one.columns["site"] for one in table} == {"A", "B"}
    for row, one in zip(table, read["report"], strict=True):
        assert row.answer == one.answer
        assert row.images == one.images
        assert bool(int(row.columns["Nodule"])) == one.columns["fields"]["nodule"]
    assert all(len(one.images) == 3 for one in read_conversations(SAMPLES / "slices.jsonl"))


def test_no_tutorial_trains_on_the_sample() -> None:
    trained = make_studies(1, first=3999)[0].patient
    assert min(one.columns["patient"] for one in read_conversations(SAMPLES / "fields.jsonl")) > (
        trained
    )
    assert FIRST > 4000
