"""The derivative of any module as an operator; of an affine one, its matrix."""

import pytest
import torch
from cases import random
from properties import adjoint_defect, linearity_defect, matrix_defect
from torch import nn

from deconv_cli.errors import UsageError
from deconv_cli.operators.linear_operator import Linearization


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
