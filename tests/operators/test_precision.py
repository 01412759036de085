"""Operators that compute in another precision than their images have."""

import torch
from cases import random

from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.linear_operator import InPrecision


def test_images_keep_their_precision_and_the_operator_its_own():
    kernel = random((3, 2, 3, 3), 1)
    exact = Convolution(kernel, (6, 5))
    rough = InPrecision(Convolution(kernel.float(), (6, 5)), torch.float64)
    x, y = random((4, 2, 6, 5), 2), random((4, 3, 6, 5), 3)
    for found, wanted in ((rough.forward(x), exact.forward(x)), (rough.adjoint(y), exact.adjoint(y))):
        assert found.dtype == torch.float64
        assert torch.allclose(found, wanted, atol=1e-5)
        assert torch.equal(found, found.float().double())
