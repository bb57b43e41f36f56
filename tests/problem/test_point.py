"""Test a problem at parameters: values are computed once, and given residuals are held."""

import jax
import numpy as np
import pytest

from oracles import CASES
from rankmon.problem.point import Point
from refusals import refused
from shared_problems import flat_of, problem_of


def point_of(name, reference=None):
    return Point.of(problem_of(name), CASES[name].params, reference)


@pytest.mark.parametrize("name", ["tanh-mse", "tanh-cross_entropy", "tokens-cross_entropy"])
def test_loss_and_residuals_are_those_of_the_problem(name):
    point, flat = point_of(name), flat_of(name)
    np.testing.assert_array_equal(point.residuals, problem_of(name).residuals(CASES[name].params))
    assert point.loss == flat.loss_and_residuals(point.theta, point.fixed)[0]
    assert point.is_finite


def test_a_reference_adds_a_part_and_its_residuals():
    flat = flat_of("tanh-mse")
    reference = np.ones((flat.positions, flat.k))
    with_one, without = point_of("tanh-mse", reference), point_of("tanh-mse")
    assert with_one.parts == (*without.parts, "H_f_fixed")
    assert len(without.functional_residuals) == 1
    own, held = with_one.functional_residuals
    np.testing.assert_array_equal(own, without.residuals)
    np.testing.assert_array_equal(held, reference)
    with refused(ValueError, "reference", str(reference.shape)):
        point_of("tanh-mse", reference[1:])


def test_holding_other_residuals_computes_nothing_again():
    point = point_of("tanh-mse")
    computed = point.theta, point.residuals, point.output_hessians
    held = point.holding(2 * point.residuals)
    assert all(
        a is b
        for a, b in zip(computed, (held.theta, held.residuals, held.output_hessians), strict=True)
    )
    np.testing.assert_array_equal(held.functional_residuals[1], 2 * point.residuals)
    assert point.reference is None


def test_parameters_or_residuals_that_are_not_finite_show():
    params = CASES["tanh-mse"].params
    lost = jax.tree.map(lambda w: np.full_like(w, np.nan), params)
    assert not Point.of(problem_of("tanh-mse"), lost, None).is_finite
    # Finite parameters, but the outputs overflow.
    params = jax.tree.map(lambda w: np.full(np.shape(w), 1e200), CASES["linear-mse"].params)
    point = Point.of(problem_of("linear-mse"), params, None)
    assert not point.nonfinite
    assert not point.is_finite
