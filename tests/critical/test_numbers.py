"""Dimensionless numbers and their intervals against known answers."""

import numpy as np
import pandas as pd
import pytest

from phantomlib.critical.numbers import (
    architecture_numbers,
    coefficient_of_variation,
    interval,
    kinematic_number,
    variation_interval,
)

INF, NAN = np.inf, np.nan
T = 20


def test_the_kinematic_number_of_a_straight_gap_is_one():
    np.testing.assert_allclose(kinematic_number(np.array([0.05]), T, np.array([1.0]), np.array([-1.0])), [1.0])


def table(numbers):
    return pd.DataFrame(
        [{"model": m, "context": c, "number": x} for m, row in numbers.items() for c, x in enumerate(row)]
    )


def test_architecture_numbers_are_geometric_means_of_what_is_defined():
    summary = architecture_numbers(table({"a": [1, 4, -3, NAN], "b": [2, 2, 2, 2]})).set_index("model")
    assert summary.loc["a", "mean"] == pytest.approx(2) and summary.loc["b", "mean"] == pytest.approx(2)
    assert summary.loc["a", ["n", "undefined"]].tolist() == [2, 2]
    assert summary.loc["b", ["log_sd", "low", "high"]].tolist() == pytest.approx([0, 2, 2])


def test_variation_is_that_of_the_means_and_its_interval_shrinks_with_agreement():
    assert coefficient_of_variation([1, 3]) == pytest.approx(np.sqrt(2) / 2)
    contexts = np.exp(np.random.default_rng(0).normal(size=10))
    shared = table({"a": 1.0 * contexts, "b": 1.1 * contexts})  # contexts scatter, the ratio of the models does not
    low, high = variation_interval(shared)
    assert low == pytest.approx(high) == pytest.approx(coefficient_of_variation([1.0, 1.1]))


def test_the_bootstrap_interval_covers_the_mean_of_normal_numbers():
    rng = np.random.default_rng(1)
    covered = [low <= 0 <= high for low, high in (interval(rng.normal(size=30), np.mean) for _ in range(40))]
    assert 33 <= sum(covered) <= 40
