"""Sums, products, multiples and adjoints of operators; differences; the derivative of a module at a point."""

import pytest
import torch
from cases import random
from properties import adjoint_defect, linearity_defect, matrix_defect
from torch import nn

from deconv_cli.errors import ShapeError, UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.differences import Difference, Differences, Gradient, first_differences, second_differences
from deconv_cli.operators.geometry import Geometry
from deconv_cli.operators.linear_operator import Identity, Linearization


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


def affine():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.ReflectionPad2d(1), nn.Conv2d(2, 6, 3, stride=2, groups=2), nn.BatchNorm2d(6), nn.Dropout(0.5),
        nn.Upsample(scale_factor=2, mode="bilinear"), nn.AvgPool2d(2, 1), nn.Conv2d(6, 4, 2, dilation=2),
        nn.PixelShuffle(2), nn.ConvTranspose2d(1, 2, 3, stride=2, output_padding=1),
    )  # fmt: skip
    net[2].running_mean.uniform_(-1, 1)
    return net.double().eval()


def test_an_affine_module_is_its_matrix_and_its_value_at_zero():
    net = affine()
    operator = Linearization(net, torch.zeros(2, 8, 9, dtype=torch.float64))
    assert adjoint_defect(operator) <= 1e-12
    assert linearity_defect(operator) <= 1e-12
    assert matrix_defect(operator) <= 1e-12
    x = random((3, 2, 8, 9), seed=9)
    with torch.no_grad():
        torch.testing.assert_close(operator(x) + operator.value, net(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("module", [nn.Tanh(), nn.ReLU(inplace=True), nn.MaxPool2d(2)])
def test_other_functions_have_their_jacobian_at_a_point(module):
    net = nn.Sequential(nn.Conv2d(2, 3, 3), module, nn.Conv2d(3, 2, 2)).double()
    at = random((2, 7, 7), seed=1)
    operator = Linearization(net, at)
    assert adjoint_defect(operator) <= 1e-12
    jacobian = torch.func.jacrev(lambda x: net(x[None])[0].flatten())(at).flatten(1)
    torch.testing.assert_close(operator.as_matrix(), jacobian, rtol=1e-10, atol=1e-12)


def test_a_function_that_hides_its_input_is_refused():
    with pytest.raises(UsageError, match="detaches nor rounds"):
        Linearization(lambda x: x.detach() + 1, torch.zeros(2))
