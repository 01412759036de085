"""Penalties describe themselves: operators, symbols and what they leave free agree, in any number of dimensions."""

import itertools

import pytest
import torch
from cases import random
from custom_rules import ThirdDifferences, registered
from properties import adjoint_defect, matrix_defect

from deconv_cli.errors import ShapeError, UsageError
from deconv_cli.operators.axes import half_spectrum, space_axes
from deconv_cli.operators.differences import Gradient, Laplacian, second_differences
from deconv_cli.operators.linear_operator import Identity
from deconv_cli.parts import PENALTIES
from deconv_cli.regularizers import find_penalty, is_determined, spaced_penalty

CPU = torch.device("cpu")
TORI = [(7,), (6, 8), (5, 7), (3, 4, 5)]
ALL = [*(find_penalty(name) for name in PENALTIES), ThirdDifferences()]


@pytest.mark.parametrize("name", ["gradient", "laplacian"])
def test_a_spacing_divides_differences_by_distances(name):
    penalty, torus = spaced_penalty(name, (4.0, 2.0, 2.0)), (3, 4, 5)
    assert (penalty.name, penalty.spacing, str(penalty)) == (name, (2.0, 1.0, 1.0), name)
    alike = find_penalty(name)
    assert [term.orders for term in penalty.terms(3)] == [term.orders for term in alike.terms(3)]
    for term, plain in zip(penalty.terms(3), alike.terms(3), strict=True):
        assert term.factor == pytest.approx(plain.factor / 2 ** term.orders[0])
    x, operator = random((2, *torus)), penalty.operator((2, *torus), periodic=True)
    symbol = penalty.symbol(torus, torch.float64, CPU)
    expected = torch.fft.irfftn(symbol * torch.fft.rfftn(x, dim=(1, 2, 3)), s=torus, dim=(1, 2, 3))
    torch.testing.assert_close(operator.adjoint(operator.forward(x)), expected, rtol=1e-11, atol=1e-11)
    assert adjoint_defect(penalty.operator((2, *torus), periodic=False)) <= 1e-12
    assert penalty.penalizes_ramps == alike.penalizes_ramps
    assert not penalty.penalizes_constants


def test_a_spacing_has_one_distance_an_axis_and_something_to_divide():
    with pytest.raises(UsageError, match="holds 2 distances, but the images have 3 axes of space"):
        spaced_penalty("gradient", (2.0, 1.0)).terms(3)
    with pytest.raises(UsageError, match="penalty identity uses no differences"):
        spaced_penalty("identity", (2.0, 1.0))
    assert spaced_penalty("identity", None) is find_penalty("identity")


def polynomial(size, degree):
    """An image that grows by a power of its distance from the first corner."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij")
    return (sum(axes) ** degree)[None]


@pytest.mark.parametrize("penalty", ALL, ids=lambda p: p.name)
@pytest.mark.parametrize("torus", TORI)
def test_the_symbol_diagonalizes_the_periodic_operator(penalty, torus):
    x, axes = random((2, *torus)), space_axes(len(torus))
    operator = penalty.operator((2, *torus), periodic=True)
    symbol = penalty.symbol(torus, torch.float64, CPU)
    assert symbol.shape == half_spectrum(torus)
    expected = torch.fft.irfftn(symbol * torch.fft.rfftn(x, dim=axes), s=torus, dim=axes)
    torch.testing.assert_close(operator.adjoint(operator.forward(x)), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("penalty", ALL, ids=lambda p: p.name)
@pytest.mark.parametrize("torus", TORI)
def test_the_operator_keeps_the_laws(penalty, torus):
    for periodic in (True, False):
        operator = penalty.operator((2, *torus), periodic=periodic)
        assert adjoint_defect(operator) <= 1e-12
        assert matrix_defect(operator) <= 1e-12


@pytest.mark.parametrize("penalty", ALL, ids=lambda p: p.name)
@pytest.mark.parametrize("size", TORI)
def test_what_a_penalty_leaves_free_costs_nothing(penalty, size):
    operator = penalty.operator((1, *size), periodic=False)
    costs = [float(operator.forward(polynomial(size, degree)).abs().max()) for degree in (0, 1)]
    assert [cost > 1e-12 for cost in costs] == [penalty.penalizes_constants, penalty.penalizes_ramps]
    assert penalty.takes_differences == (penalty.name != "identity")


@pytest.mark.parametrize("size", [(6,), (5, 6), (3, 4, 5)])
def test_public_operators_take_the_differences_of_numpy(size):
    x, n_axes = random((2, *size)), len(size)
    gradient = Gradient((2, *size))(x)
    assert gradient.shape == (n_axes, 2, *size)
    for i, axis in enumerate(space_axes(n_axes)):
        torch.testing.assert_close(gradient[i].narrow(axis, 0, size[i] - 1), x.diff(dim=axis))
        assert not gradient[i].narrow(axis, size[i] - 1, 1).any()
    curvature = Laplacian((2, *size))(x)
    assert curvature.shape == (n_axes * (n_axes + 1) // 2, 2, *size)
    pairs = itertools.combinations_with_replacement(space_axes(n_axes), 2)
    energy = sum((1 + (a != b)) * x.diff(dim=a).diff(dim=b).square().sum() for a, b in pairs)
    torch.testing.assert_close(curvature.square().sum(), energy)
    assert Laplacian((2, *size)).terms == second_differences(n_axes)
    for operator in (Gradient((2, *size)), Laplacian((2, *size))):
        matrix = operator.as_matrix()
        torch.testing.assert_close(operator.apply_gram(x).flatten(), matrix.T @ matrix @ x.flatten())


def test_a_penalty_of_the_users_own_goes_by_its_name_once_it_is_registered():
    with pytest.raises(UsageError, match="penalty must be one of identity, gradient, laplacian, but is 'third'"):
        find_penalty("third")
    with registered(ThirdDifferences()):
        assert is_determined(1e-3, "third", 2, 2)
        assert not is_determined(1e-3, "third", 1, 2)
    assert is_determined(0.0, "gradient", 1, 2)
    assert is_determined(1e-3, "identity", 1, 2)


def test_operators_take_what_ends_in_their_shape():
    with pytest.raises(ShapeError, match=r"ends in \(2, 4, 5\), but this one has \(1, 4, 5\); reshape it"):
        Gradient((2, 4, 5))(random((1, 4, 5)))
    with pytest.raises(ShapeError, match=r"this one has \(5,\)"):
        Identity((4, 5))(random((5,)))
    assert Gradient((2, 4, 5))(random((3, 1, 2, 4, 5))).shape == (3, 1, 2, 2, 4, 5)
