from __future__ import annotations

import math

import numpy as np

from medkit.synth import exact


def test_exp_agrees_with_the_math_library_to_a_few_parts_in_ten_to_the_15() -> None:
    x = np.linspace(-30, 30, 4001)
    want = np.array([math.exp(v) for v in x])
    assert np.max(np.abs(exact.exp(x) / want - 1)) < 5e-15


def test_log_agrees_with_the_math_library_to_a_few_parts_in_ten_to_the_15() -> None:
    x = np.concatenate([np.linspace(1e-3, 40, 4001), 2.0 ** np.arange(-60, 61), [1 - 2.0**-53]])
    want = np.array([math.log(v) for v in x])
    assert np.max(np.abs(exact.log(x) - want) / np.maximum(np.abs(want), 1e-3)) < 5e-15


def test_sigmoid_is_one_half_at_zero_and_symmetric() -> None:
    x = np.array([0.0, 2.0, -2.0])
    prob = exact.sigmoid(x)
    assert prob[0] == 0.5
    assert math.isclose(prob[1] + prob[2], 1.0, rel_tol=1e-15)


def test_noise_density_is_a_density_with_mean_0_and_variance_1() -> None:
    x = np.linspace(-6, 6, 6001)
    density, step = exact.noise_density(x), x[1] - x[0]
    assert density.min() >= 0
    assert math.isclose(density.sum() * step, 1.0, rel_tol=1e-9)
    assert abs((density * x).sum() * step) < 1e-12
    assert math.isclose((density * x * x).sum() * step, 1.0, rel_tol=1e-6)


def test_noise_follows_its_density() -> None:
    drawn = exact.noise(exact.uniforms(0, "test", shape=(12, 40_000)))
    share, edges = np.histogram(drawn, bins=24, range=(-3, 3))
    middle = (edges[1:] + edges[:-1]) / 2
    want = exact.noise_density(middle) * (edges[1] - edges[0]) * len(drawn)
    assert np.max(np.abs(share - want) / np.sqrt(want)) < 5  # five standard errors


def test_uniforms_depend_on_the_place_and_not_on_the_global_generator() -> None:
    np.random.seed(1)  # noqa: NPY002 - the global generator is what must not matter
    first = exact.uniforms(0, "here", shape=(5,))
    np.random.seed(2)  # noqa: NPY002
    np.testing.assert_array_equal(exact.uniforms(0, "here", shape=(5,)), first)
    assert not np.array_equal(exact.uniforms(0, "there", shape=(5,)), first)
