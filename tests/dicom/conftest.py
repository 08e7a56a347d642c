"""De-identification of a small tree, for the tests of what comes out and of what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medkit.dicom.deidentify import Deidentified, deidentify
from medkit.synth.phantom_series import phantom_series, write_series

KEY = b"k" * 32


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Deidentified]:
    """De-identify ``in`` into ``out``."""

    def call(out: str = "out", **options: Any) -> Deidentified:
        options = {"key": KEY, "progress": False} | options
        return deidentify(tmp_path / "in", tmp_path / out, **options)

    return call


@pytest.fixture
def series(tmp_path: Path) -> list[Any]:
    datasets = phantom_series(slices=4)
    write_series(tmp_path / "in" / "DOE^JANE", datasets)
    return datasets


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., None]:
    """Write one slice with other elements, as ``in``."""

    def call(**changes: Any) -> None:
        (dataset,) = phantom_series(slices=1)
        for name, value in changes.items():
            setattr(dataset, name, value)
        write_series(tmp_path / "in", [dataset])

    return call
