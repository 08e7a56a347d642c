from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from medkit import keyed as keys

# Frozen: a result published with one version must come out the same with the next.
PINNED = [
    ((0, "split"), 0xBEF9C8D08BA342F3),
    ((0, "order", 0), 0x3A2122C6B916C785),
    ((7, "augment", 3, 41), 0x4AB30A0C1C908DAC),
    ((7, "step", 1, 250, 0, 0), 0x5A4B276BC7F6691B),
    ((-1, "init", "fit"), 0x0384565D62D68DFC),
    ((2**63, "init", "größe"), 0x92887BAC003DF719),
    ((1, "order", 1), 0x9AF1DF390CF19725),
    ((1, "order", "1"), 0x2411F81ABF9EEC80),
]


@pytest.mark.parametrize(("place", "number"), PINNED)
def test_a_place_has_the_number_it_always_had(place: tuple[Any, ...], number: int) -> None:
    assert keys.seed_of(*place) == number


def test_the_number_is_the_head_of_a_published_hash() -> None:
    digest = hashlib.blake2b(b"(7, 'augment', 3, 41)", digest_size=8).digest()
    assert keys.seed_of(7, "augment", 3, 41) == int.from_bytes(digest, "little")


def test_a_name_and_a_number_that_look_alike_are_two_places() -> None:
    assert keys.seed_of(0, "order", 1) != keys.seed_of(0, "order", "1")


def test_a_place_is_more_than_its_digits_in_a_row() -> None:
    assert keys.seed_of(0, "step", 1, 11) != keys.seed_of(0, "step", 11, 1)
    assert keys.seed_of(0, "step", 1) != keys.seed_of(0, "step", 1, 0)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_a_numpy_integer_is_the_same_place_as_pythons(kind: type[np.integer]) -> None:
    assert keys.seed_of(kind(7), "order", kind(3)) == keys.seed_of(7, "order", 3)


def test_a_numpy_string_is_the_same_place_as_pythons() -> None:
    assert keys.seed_of(7, "init", np.array(["fit"])[0]) == keys.seed_of(7, "init", "fit")


def test_numpys_draws_at_a_place_are_those_they_always_were() -> None:
    draw = keys.generator(7, "order", 3)
    assert draw.integers(0, 2**32, 4).tolist() == [2419154379, 1785641547, 4024492180, 4113184048]
    assert draw.permutation(8).tolist() == [5, 1, 7, 3, 0, 4, 2, 6]


def test_torchs_draws_at_a_place_are_those_they_always_were() -> None:
    draw = keys.torch_generator(7, "synth")
    got = torch.randint(0, 2**31, (4,), generator=draw)
    assert got.tolist() == [1176430326, 1309599478, 743784257, 778405800]


def draws() -> tuple[list[float], list[float]]:
    """What is drawn at one place, by NumPy and by torch."""
    mine = keys.generator(3, "augment", 1, 2).random(5).tolist()
    torchs = torch.rand(5, generator=keys.torch_generator(3, "augment", 1, 2)).tolist()
    return mine, torchs


def disturb(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global generators are what must not matter
    torch.manual_seed(seed)


def test_a_place_gives_the_same_bits_whatever_was_drawn_before() -> None:
    disturb(1)
    first = draws()
    disturb(2)
    keys.generator(3, "augment", 1, 1).random(100)
    assert draws() == first


def test_another_seed_purpose_or_place_gives_other_bits() -> None:
    places = [(3, "augment", 1), (4, "augment", 1), (3, "step", 1), (3, "augment", 2)]
    numpys = {keys.generator(*place).random() for place in places}
    torchs = {torch.rand(1, generator=keys.torch_generator(*place)).item() for place in places}
    assert len(numpys) == len(torchs) == 4


def test_drawing_at_a_place_leaves_the_global_generators_alone() -> None:
    disturb(5)
    expected = global_draws()
    disturb(5)
    draws()
    assert global_draws() == expected


def global_draws() -> list[float]:
    mine = [random.random(), random.gauss(0, 1)]
    legacy = [np.random.random(), np.random.standard_normal()]  # noqa: NPY002
    return [*mine, *legacy, torch.rand(1).item(), torch.randn(1).item()]


def test_global_draws_inside_a_keyed_block_depend_on_its_key_alone() -> None:
    got = []
    for noise, key in [(1, 7), (2, 7), (1, 8)]:
        disturb(noise)
        with keys.globals_keyed(0, "init", key):
            got.append(global_draws())
    assert got[0] == got[1]
    assert not set(got[0]) & set(got[2])


def halfway(seed: int) -> None:
    """Leave each generator with half a pair of normal draws in its pocket."""
    disturb(seed)
    random.gauss(0, 1)
    np.random.standard_normal()  # noqa: NPY002


def test_a_keyed_block_puts_the_global_generators_back_as_they_were() -> None:
    halfway(5)
    expected = global_draws()
    halfway(5)
    with keys.globals_keyed(0, "init", "fit"):
        global_draws()
    assert global_draws() == expected


def test_a_keyed_block_that_fails_puts_them_back_as_well() -> None:
    halfway(5)
    expected = global_draws()
    halfway(5)
    with pytest.raises(KeyError), keys.globals_keyed(0, "init", "fit"):
        raise KeyError(random.random())
    assert global_draws() == expected


@pytest.mark.parametrize("key", [0, 1, 2**32 + 5, 2**64 - 1])
def test_globals_are_set_as_their_own_functions_would(key: int) -> None:
    halfway(9)
    random.seed(key)
    np.random.seed(key % 2**32)  # noqa: NPY002
    torch.manual_seed(key)
    expected = global_draws()
    halfway(9)  # a normal draw in a pocket must go too
    keys.set_globals(key)
    assert global_draws() == expected


def test_pythons_generator_takes_all_64_bits_of_a_key() -> None:
    got = []
    for key in (5, 2**32 + 5):  # torch's CPU generator and NumPy's old one see no difference
        keys.set_globals(key)
        got.append(random.random())
    assert got[0] != got[1]


def test_there_is_no_run_seed_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_run_seed", None)
    with pytest.raises(
        RuntimeError, match=r"no run was started.*start_run\(run_dir, seed=\.\.\.\)"
    ):
        keys.run_seed()


def test_the_run_seed_is_that_of_the_run_started_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_run_seed", None)
    keys.set_run_seed(3)
    keys.set_run_seed(np.int64(4))
    assert keys.run_seed() == 4


def test_keys_need_no_torch_until_one_of_its_generators_is_asked_for() -> None:
    code = """
import sys
from medkit import keyed
keyed.generator(0, "order", 0).random()
with keyed.globals_keyed(0, "split"):
    pass
keyed.set_globals(3)
assert "torch" not in sys.modules, "torch was imported"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
