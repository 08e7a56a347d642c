from __future__ import annotations

import copy
import functools
import logging
import random
import types
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset, WeightedRandomSampler

from medkit.data import generators
from medkit.data.generators import Generator, find_generators, rekey

BESIDE = np.random.RandomState(0)  # what other people's modules hold
settings = types.ModuleType("settings")
settings.RNG = random.Random(0)  # type: ignore[attr-defined]

KINDS: dict[str, tuple[Callable[[], Generator], Callable[[Any], float]]] = {
    "RandomState": (lambda: np.random.RandomState(0), lambda r: float(r.standard_normal())),
    "Generator": (lambda: np.random.default_rng(0), lambda r: float(r.random())),
    "Philox": (
        lambda: np.random.Generator(np.random.Philox(0)),
        lambda r: float(r.standard_normal()),
    ),
    "Random": (lambda: random.Random(0), lambda r: float(r.gauss(0, 1))),
    "torch": (
        lambda: torch.Generator().manual_seed(0),
        lambda r: torch.rand(1, generator=r).item(),
    ),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> tuple[Callable[[], Generator], Callable[[Any], float]]:
    return KINDS[request.param]


class Holder:
    def __init__(self, **parts: object) -> None:
        self.__dict__.update(parts)


def test_each_kind_is_found_in_an_attribute(kind: Any) -> None:
    rng = kind[0]()
    assert find_generators(Holder(rng=rng)) == [rng]


def test_a_keyed_generator_draws_from_its_key_and_not_from_its_history(kind: Any) -> None:
    make, draw = kind
    fresh, used, other = make(), make(), make()
    for _ in range(3):  # an odd number of normal draws leaves half a pair behind
        draw(used)
    rekey([fresh], 5)
    rekey([used], 5)
    rekey([other], 6)
    first = [draw(fresh) for _ in range(4)]
    assert [draw(used) for _ in range(4)] == first
    assert draw(other) != first[0]


def test_generators_of_one_object_are_keyed_apart(kind: Any) -> None:
    make, draw = kind
    pair = [make(), make()]
    rekey(pair, 5)
    assert draw(pair[0]) != draw(pair[1])


def test_keying_leaves_a_generator_the_object_it_was() -> None:
    rng = np.random.default_rng(0)
    draw = rng.random  # somebody keeps the bound method
    rekey([rng], 5)
    first = draw()
    rekey([rng], 5)
    assert draw() == first


# ---- where they hide ---------------------------------------------------------------------------


def make_closure(rng: Generator) -> object:
    def add_noise(x: float) -> float:
        return x + rng.random()  # type: ignore[union-attr, operator]

    return add_noise


def make_default(rng: Generator) -> object:
    def add_noise(x: float, *, source: Any = rng) -> float:
        return x + source.random()

    return add_noise


def make_class_attribute(rng: Generator) -> object:
    return type("Augment", (), {"RNG": rng})()


def make_slots(rng: Generator) -> object:
    augment = type("Augment", (), {"__slots__": ("rng",)})()
    augment.rng = rng
    return augment


def make_dataclass(rng: Generator) -> object:
    @dataclass
    class Augment:
        parts: list[Any] = field(default_factory=lambda: [rng])

    return Augment()


def make_property(rng: Generator) -> object:
    return type("Augment", (), {"noise": property(lambda self: rng.random())})()  # type: ignore[union-attr]


def make_callable_class(rng: Generator) -> object:
    return type("Augment", (), {"__call__": lambda self, x: x + rng.random()})()  # type: ignore[union-attr]


def make_loop(rng: Generator) -> object:
    one, other = Holder(), Holder(rng=rng)
    one.other, other.one = other, one  # type: ignore[attr-defined]
    return one


def make_comprehension(rng: Generator) -> object:
    return lambda n: [rng.random() for _ in range(n)]  # type: ignore[union-attr]


HIDING: dict[str, Callable[[Generator], object]] = {
    "list of transforms": lambda rng: Holder(transforms=[abs, Holder(rng=rng)]),
    "dict": lambda rng: {"train": Holder(rng=rng)},
    "tuple in a deque": lambda rng: deque([(1, rng)]),
    "set": lambda rng: {rng},
    "closure": make_closure,
    "default argument": make_default,
    "lambda": lambda rng: lambda x: x + rng.random(),  # type: ignore[union-attr, operator]
    "comprehension in a lambda": make_comprehension,
    "class attribute": make_class_attribute,
    "slot": make_slots,
    "dataclass": make_dataclass,
    "property": make_property,
    "__call__": make_callable_class,
    "partial's argument": lambda rng: functools.partial(round, rng),
    "partial's keyword": lambda rng: functools.partial(round, ndigits=rng),
    "partial's function": lambda rng: functools.partial(make_closure(rng), 1),  # type: ignore[arg-type]
    "bound method": lambda rng: Holder(draw=types.MethodType(lambda self: None, Holder(rng=rng))),
    "bound method of the generator": lambda rng: Holder(draw=rng.random),  # type: ignore[union-attr]
    "two that know each other": make_loop,
    "subset of concatenated data": lambda rng: Subset(ConcatDataset([Data(rng), Data(None)]), [0]),
    "module list": lambda rng: torch.nn.Sequential(torch.nn.Linear(1, 1), Noise(rng)),
}


class Data(Dataset[float]):
    def __init__(self, rng: object) -> None:
        self.rng = rng

    def __len__(self) -> int:
        return 1


class Noise(torch.nn.Module):
    def __init__(self, rng: object) -> None:
        super().__init__()
        self.rng = rng


@pytest.mark.parametrize("place", HIDING)
def test_a_generator_is_found_wherever_it_hides(place: str) -> None:
    rng = random.Random(0)
    assert find_generators(HIDING[place](rng)) == [rng]


def test_one_that_a_class_shares_is_found_through_an_object_of_a_subclass() -> None:
    class Base:
        shared: ClassVar[random.Random] = random.Random(0)

    class Augment(Base):
        pass

    assert find_generators(Augment()) == [Base.shared]


def test_one_that_stands_beside_the_class_is_found_through_the_method_that_names_it() -> None:
    class Augment:
        def __call__(self, x: float) -> float:
            return x + BESIDE.rand()

    assert find_generators(Augment()) == [BESIDE]


def test_one_that_only_an_inner_function_names_is_found() -> None:
    def augment(xs: list[float]) -> list[float]:
        return list(map(lambda x: x + BESIDE.rand(), xs))

    assert find_generators(augment) == [BESIDE]


def test_one_in_another_module_is_found_through_the_function_that_reads_it() -> None:
    def augment(x: float) -> float:
        return x + settings.RNG.random()

    assert find_generators(augment) == [settings.RNG]


def test_one_in_a_helper_is_found_through_its_caller() -> None:
    class Augment:
        def __call__(self, x: float) -> float:
            return helper(x)

    assert find_generators(Augment()) == [BESIDE]


def helper(x: float) -> float:
    return x + BESIDE.rand()


def test_one_that_is_met_twice_is_keyed_once() -> None:
    rng = random.Random(0)
    assert find_generators([rng, Holder(rng=rng), rng]) == [rng]


def test_torchs_samplers_and_datasets_show_theirs() -> None:
    rng = torch.Generator()
    assert find_generators(WeightedRandomSampler([1.0, 2.0], 2, generator=rng)) == [rng]
    assert find_generators(TensorDataset(torch.zeros(3))) == []


def test_the_order_of_what_is_found_is_that_of_the_object() -> None:
    rngs = [random.Random(n) for n in range(50)]
    root = Holder(first=rngs[:25], then={"a": rngs[25], "b": Holder(inner=rngs[26:])})
    found = find_generators(root)
    assert [id(rng) for rng in found] == [id(rng) for rng in rngs]


# ---- what is left alone ------------------------------------------------------------------------


def test_the_process_wide_generators_have_keys_of_their_own() -> None:
    parts = [
        torch.default_generator,
        np.random.mtrand._rand,
        random._inst,  # type: ignore[attr-defined]
        random.random,
        np.random.random,
        random.SystemRandom(),
    ]
    assert find_generators(Holder(parts=parts, draw=lambda: random.random())) == []


def test_a_module_or_a_class_is_not_walked_for_its_own_sake() -> None:
    assert find_generators([settings, type("Augment", (), {"RNG": random.Random(0)})]) == []


def test_looking_draws_nothing_and_runs_no_property() -> None:
    rng = random.Random(0)
    state = rng.getstate()

    class Augment:
        source = rng

        @property
        def noise(self) -> float:
            raise AssertionError("the walk must not run somebody's code")

    assert find_generators(Augment()) == [rng]
    assert rng.getstate() == state


@pytest.mark.parametrize(
    "row",
    [{"image": "a.nii.gz", "label": 1}, ["a.nii.gz", [1.0, 2.0]], {"box": {"x": 1, "y": {2}}}],
)
def test_a_long_list_of_data_does_not_use_up_the_walk(
    row: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(generators, "_LIMIT", 1500)
    rng = random.Random(0)
    rows = [copy.deepcopy(row) for _ in range(3000)]
    assert find_generators(
        Holder(rows=rows, table={n: r for n, r in enumerate(rows)}, rng=rng)
    ) == [rng]
    assert caplog.text == ""


def test_a_long_list_of_transforms_is_no_data() -> None:
    rng = random.Random(0)
    assert find_generators([*(Holder() for _ in range(2000)), Holder(rng=rng)]) == [rng]


def test_giving_up_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(generators, "_LIMIT", 50)
    with caplog.at_level(logging.WARNING):
        find_generators([Holder() for _ in range(100)])
    assert "gave up looking for random generators in list after 50 objects" in caplog.text


# ---- MONAI -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def monai() -> Any:
    import monai.transforms

    return monai.transforms


def compose(monai: Any) -> Any:
    return monai.Compose(
        [
            monai.RandFlipd(["image"], prob=0.5),
            monai.OneOf(
                [
                    monai.RandGaussianNoised(["image"], prob=1.0),
                    monai.RandShiftIntensityd(["image"], 1.0, prob=1.0),
                ]
            ),
        ]
    )


@pytest.mark.parametrize("seeded", [True, False])
def test_monais_transforms_draw_from_the_key_however_they_were_seeded(
    monai: Any, seeded: bool
) -> None:
    image = np.arange(16, dtype=np.float32).reshape(1, 4, 4)

    def twenty(noise: int, key: int) -> list[float]:
        transform = compose(monai)
        if seeded:
            transform.set_random_state(seed=noise)
        for _ in range(noise):
            transform({"image": image})
        found = find_generators(transform)
        results = []
        for n in range(20):
            rekey(found, key + n)
            results.append(float(np.asarray(transform({"image": image})["image"])[0, 0, 0]))
        return results

    first = twenty(1, 100)
    assert twenty(4, 100) == first
    assert twenty(1, 500) != first
    assert len(set(first)) > 10


def test_the_state_of_a_transform_inside_a_transform_is_found(monai: Any) -> None:
    crop = monai.RandCropByPosNegLabeld(["image"], label_key="label", spatial_size=[2, 2])
    whole = monai.Compose([crop])  # seeds what is in it anew
    found = find_generators(whole)
    assert {id(crop.R), id(crop.cropper.R)} <= {id(rng) for rng in found}


def test_crops_by_label_depend_on_the_key_alone(monai: Any) -> None:
    draw = np.random.default_rng(0)
    sample = {
        "image": draw.random((1, 16, 16), dtype=np.float32),
        "label": (draw.random((1, 16, 16)) > 0.5).astype(np.int64),
    }
    crop = monai.RandCropByPosNegLabeld(["image"], "label", spatial_size=[4, 4], num_samples=2)
    found = find_generators(crop)

    def corners(key: int) -> list[float]:
        rekey(found, key)
        return [float(patch["image"][0, 0, 0]) for patch in crop(sample)]

    first = corners(1)
    others = [corners(key) for key in range(2, 8)]
    assert corners(1) == first
    assert any(other != first for other in others)
