"""Files with broken bytes: an image or the kit's own error, no crash and no hang."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import pytest

from medkit.dicom import DicomError, read_image
from medkit.synth.mutants import bundled_images, mutants


def outcomes(count: int, seed: int, folder: Path) -> Counter[str]:
    path = folder / "mutant.dcm"
    said: Counter[str] = Counter()
    named = 0
    for data in mutants(bundled_images(), count, seed=seed):
        path.write_bytes(data)
        try:
            read_image(path)
            said["ok"] += 1
        except DicomError as error:  # anything else fails the test
            said[error.problem] += 1
            named += str(path) in str(error)
    assert named == count - said["ok"], "each refusal names its file"
    return said


@pytest.mark.parametrize(
    ("count", "seed"), [(800, 1), pytest.param(10_000, 2, marks=pytest.mark.slow)]
)
def test_a_mutant_is_read_or_refused(count: int, seed: int, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        said = outcomes(count, seed, tmp_path)
    assert said["ok"] > count / 50
    assert len(said) >= 6
    assert sum(said.values()) == count


def test_the_same_seed_gives_the_same_mutants_and_another_others() -> None:
    first, again, other = (list(mutants([bytes(5000)], 20, seed=seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other
