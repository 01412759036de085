"""Convolutions of signals and volumes, against torch's own `conv1d` and `conv3d` after numpy's padding."""

import pytest
import torch
from cases import random
from properties import adjoint_defect, backward_defect, linearity_defect, matrix_defect, reference_convolution
from torch.nn import functional

from deconv_cli.errors import ShapeError, UsageError
from deconv_cli.operators.axes import crop
from deconv_cli.operators.circulant import BlockCirculant, torus_symbol
from deconv_cli.operators.convolution import Convolution, ValidCorrelation
from deconv_cli.operators.extension import close_smoothly
from deconv_cli.operators.geometry import Geometry, Pads, resolve_padding
from deconv_cli.parts import BOUNDARIES

PROBLEMS = [  # image size, kernel shape
    ((9,), (2, 3, 4)),
    ((8,), (1, 1, 3)),
    ((4, 5, 6), (2, 1, 3, 2, 4)),
    ((5, 4, 4), (3, 2, 1, 3, 2)),
]
PADDINGS = ["same", "valid", "full", 1]


@pytest.mark.parametrize(("size", "shape"), PROBLEMS)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("boundary", list(BOUNDARIES))
def test_convolutions_equal_torchs_and_keep_the_laws(size, shape, padding, boundary):
    kernel = random(shape)
    operator = Convolution(kernel, size, padding=padding, boundary=boundary)
    x = random((2, *operator.input_shape), seed=1)
    expected = reference_convolution(x, kernel, operator.geometry.pads, boundary)
    torch.testing.assert_close(operator(x), expected, rtol=1e-12, atol=1e-12)
    assert adjoint_defect(operator) <= 1e-12
    assert linearity_defect(operator) <= 1e-12
    assert matrix_defect(operator) <= 1e-12
    assert backward_defect(operator) <= 1e-12
    assert operator.crop_to_frame(x).shape[2:] == size


PLANES = [((50, 47), (3, 2, *k)) for k in ((3, 3), (4, 5), (7, 2), (16, 16), (31, 31))]


@pytest.mark.parametrize(("size", "shape"), [((40,), (3, 2, 9)), ((9, 8, 11), (2, 3, 3, 2, 4)), *PLANES])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 3e-6)])
@pytest.mark.parametrize("use_fft", [True, False])
def test_both_ways_of_sliding_agree_in_any_number_of_dimensions(size, shape, dtype, bound, use_fft):
    kernel, x = random(shape, 0, dtype), random((2, 4, shape[1], *size), 1, dtype)
    operator = ValidCorrelation(kernel, size, use_fft=use_fft)
    convolve = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[len(size)]
    expected = convolve(x.double().flatten(0, 1), kernel.double()).unflatten(0, (2, 4))
    difference = operator(x).double() - expected
    assert difference.norm() <= bound * expected.norm()
    assert difference.abs().max() <= 4 * bound * expected.abs().max()
    assert dtype == torch.float32 or adjoint_defect(operator) <= 1e-12


def test_four_dimensions_go_by_the_fft():
    kernel = random((1, 1, 2, 2, 2, 2))
    operator = Convolution(kernel, (3, 4, 3, 2), boundary="circular")
    assert operator.correlation.use_fft
    assert adjoint_defect(operator) <= 1e-12
    delta = torch.zeros(1, 3, 4, 3, 2, dtype=torch.float64)
    delta[0, 1, 1, 1, 1] = 1
    # conv correlates, so that the taps are mirrored.
    found = operator(delta)[0, :2, :2, :2, :2]
    torch.testing.assert_close(found, kernel[0, 0].flip(0, 1, 2, 3), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("size", "torus"), [((5,), (9,)), ((4, 3, 5), (6, 3, 8))])
def test_a_closed_field_begins_with_itself_and_has_no_seam(size, torus):
    ramp = sum(torch.arange(n, dtype=torch.float64).reshape(-1, *[1] * (len(size) - 1 - i)) for i, n in enumerate(size))
    closed = close_smoothly(ramp[None], torus)
    assert closed.shape == (1, *torus)
    assert torch.equal(crop(closed, (0,) * len(size), size)[0], ramp)
    for axis, (n, length) in enumerate(zip(size, torus, strict=True), 1):
        if length > n:
            jump = (closed.select(axis, 0) - closed.select(axis, length - 1)).abs().max()
            assert float(jump) <= 1.0


def test_paddings_have_one_number_for_each_axis():
    assert resolve_padding("same", (4, 3, 2)) == Pads((1, 1, 0), (2, 1, 1))
    assert resolve_padding("full", (4,)) == Pads((3,), (3,))
    assert resolve_padding((1, 0, 2), (4, 3, 2)) == Pads((1, 0, 2), (1, 0, 2))
    assert resolve_padding(2, (4, 3, 2)).total == (4, 4, 4)
    for wrong in ((1, 2), "reflect", -1, (1, -1, 1), True, 1.5):
        with pytest.raises(UsageError, match=r"a whole number or one for each .*ax[ie]s, but is"):
            resolve_padding(wrong, (4, 3, 2))


@pytest.mark.parametrize("padding", ["same", "valid", "full", 3, (0, 2, 1)])
def test_a_geometry_is_found_again_from_its_output(padding):
    forward = Geometry.of_image((9, 8, 7), (3, 2, 5), padding)
    assert Geometry.of_output(forward.output_size, (3, 2, 5), padding) == forward


def test_a_geometry_of_any_size_takes_no_memory():
    geometry = Geometry.of_image((10**9,) * 3, (3, 3, 3), 10**12)
    assert geometry.output_size == (10**9 + 2 * 10**12 - 2,) * 3
    assert Convolution(random((1, 1, 3, 3)), (8, 8), padding=10**6).output_shape == (1, 2000006, 2000006)


def test_images_that_do_not_fit_a_kernel_are_refused():
    with pytest.raises(ShapeError, match=r"must have 3 axes, or 5 with channels, but its shape is \(1, 1, 3, 3\)"):
        Convolution(random((1, 1, 3, 3)), (4, 4, 4))
    with pytest.raises(ShapeError, match="3×3 needs an image with 2 axes of space, but the image has the size 4×4×4"):
        Geometry.of_image((4, 4, 4), (3, 3), "same")
    with pytest.raises(ShapeError, match="kernel of 3×3×9 does not fit into an image of 4×4×4"):
        Convolution(random((3, 3, 9)), (4, 4, 4), padding="valid")


@pytest.mark.parametrize("channels", [(1, 1), (2, 3), (5, 6)])
@pytest.mark.parametrize("torus", [(8,), (6, 5), (6, 4, 5), (3, 4, 2, 3)])
def test_a_part_of_a_product_is_that_of_the_whole(channels, torus):
    size = tuple(n - 1 for n in torus)
    circulant = BlockCirculant(torus_symbol(random((*channels, *[2] * len(torus))), torus), torus)
    for apply, n_channels in ((circulant.forward, channels[1]), (circulant.adjoint, channels[0])):
        x = random((2, n_channels, *size), seed=1)
        padded = torch.zeros(2, n_channels, *torus, dtype=x.dtype)
        crop(padded, (0,) * len(torus), size).copy_(x)
        torch.testing.assert_close(apply(x, size), crop(apply(padded), (0,) * len(torus), size), rtol=0, atol=1e-13)
    assert adjoint_defect(circulant) <= 1e-12
    assert matrix_defect(circulant) <= 1e-12
