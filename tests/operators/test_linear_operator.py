"""Sums, products, multiples and adjoints of operators; differences."""

import pytest
import torch
from cases import random
from properties import adjoint_defect, matrix_defect

from deconv_cli.errors import ShapeError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.differences import Difference, Differences, Gradient, first_differences, second_differences
from deconv_cli.operators.geometry import Geometry
from deconv_cli.operators.linear_operator import Identity


def convolution(shape, seed=0):
    return Convolution.of_geometry(random(shape, seed), Geometry.of_image((6, 5), shape[2:], "same"), "reflect")


def test_algebra_is_that_of_matrices():
    a, b, c = convolution((2, 3, 3, 3)), convolution((3, 2, 3, 1), 1), convolution((2, 3, 1, 3), 2)
    A, B, C = a.as_matrix(), b.as_matrix(), c.as_matrix()
    torch.testing.assert_close((a @ b).as_matrix(), A @ B)
    torch.testing.assert_close((a + c).as_matrix(), A + C)
    torch.testing.assert_close((2.5 * a).as_matrix(), 2.5 * A)
    torch.testing.assert_close((a - c).as_matrix(), A - C)
    torch.testing.assert_close((-a).as_matrix(), -A)
    torch.testing.assert_close((a * 2).as_matrix(), 2 * A)
    torch.testing.assert_close(a.H.as_matrix(), A.T)
    torch.testing.assert_close(a.gram.as_matrix(), A.T @ A)
    for operator in (a @ b, a + c, 2.5 * a, a.H, a.gram, Identity((2, 3, 4))):
        assert adjoint_defect(operator) <= 1e-12
        assert matrix_defect(operator) <= 1e-12


def test_operators_do_not_add_to_numbers_and_tensors():
    a = convolution((2, 3, 3, 3))
    for nonsense in (lambda: a + 1, lambda: 2j * a, lambda: a @ torch.ones(2)):
        with pytest.raises(TypeError, match="unsupported operand"):
            nonsense()


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize(
    "terms", [first_differences(2), second_differences(2), (Difference((0, 0)),), (Difference((2, 1), 0.5),)]
)
@pytest.mark.parametrize("shape", [(1, 4, 5), (2, 1, 6), (1, 1, 1)])
def test_differences(periodic, terms, shape):
    operator = Differences(shape, terms, periodic=periodic)
    assert adjoint_defect(operator) <= 1e-12 or float(operator.as_matrix().abs().max()) <= 1e-15
    assert matrix_defect(operator) <= 1e-12
    constant = operator.forward(torch.ones(shape, dtype=torch.float64))
    assert float(constant.abs().max()) == float(terms == (Difference((0, 0)),))


def test_convolutions_are_built_from_taps_or_a_kernel():
    taps, x = random((3, 4)), random((1, 7, 6))
    expected = Convolution.of_geometry(taps[None, None], Geometry.of_image((7, 6), (3, 4), "full"), "zero")(x)
    for kernel in (taps, taps[None, None], Kernel.from_tensor(taps)):
        operator = Convolution(kernel, (7, 6), padding="full")
        assert torch.equal(operator(x), expected)
        assert operator.kernel.shape == (1, 1, 3, 4)
    assert Convolution(taps, (7, 6)).geometry == Geometry.of_image((7, 6), (3, 4), "same")
    assert Convolution(taps, (7, 6)).boundary.is_zero


def test_matrices_have_the_dtype_of_the_operators_they_are_made_of():
    A = Convolution(random((2, 1, 3, 3)).float(), (6, 5))
    wide = Convolution(A.kernel.double(), (6, 5)).as_matrix()
    for operator in (A, A @ Identity((1, 6, 5)), 1.0 * A, A.H.H, Identity((2, 6, 5)) @ A):
        assert operator.dtype == torch.float32
        torch.testing.assert_close(operator.as_matrix(), wide.float())
    assert Gradient((1, 6, 5)).as_matrix().dtype == torch.float64


def test_wrong_chains_and_sums_name_both_shapes():
    A, G = Convolution(random((2, 1, 3, 3)), (6, 5), padding="valid"), Gradient((1, 6, 5))
    with pytest.raises(ShapeError, match=r"first returns \(2, 4, 3\), but the next takes \(1, 6, 5\); build"):
        G @ A
    with pytest.raises(
        ShapeError, match=r"one takes \(1, 6, 5\) to \(2, 4, 3\), the other \(1, 6, 5\) to \(2, 1, 6, 5\)"
    ):
        A + G
    with pytest.raises(ShapeError, match=r"ends in \(1, 6, 5\), but this one has \(1, 5, 6\)"):
        A(random((1, 5, 6)))
