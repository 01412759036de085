"""The convolution equals conv2d, its dense matrix and its adjoint, under every border and padding."""

import pytest
import torch
from cases import ALL_CASES, Case, named, random
from properties import adjoint_defect, backward_defect, linearity_defect, matrix_defect, reference_convolution

from deconv_cli.errors import MalformedInputError, ShapeError, UsageError
from deconv_cli.operators import convolution
from deconv_cli.operators.boundary_rules import CIRCULAR, UNKNOWN, ZERO, wrap
from deconv_cli.operators.convolution import Convolution, TorusCorrelation, ValidCorrelation
from deconv_cli.operators.geometry import Geometry


@pytest.mark.parametrize(**named(ALL_CASES))
def test_it_equals_padded_conv2d_and_keeps_the_laws(case: Case):
    operator = case.operator()
    x = random((2, *operator.input_shape), seed=9)
    expected = reference_convolution(x, case.kernel(), case.geometry().pads, case.boundary)
    torch.testing.assert_close(operator.forward(x), expected, rtol=1e-12, atol=1e-12)
    for defect in (adjoint_defect, linearity_defect, matrix_defect, backward_defect):
        assert defect(operator) <= 1e-12


@pytest.mark.parametrize("kernel_size", [(1, 1), (3, 3), (4, 5)])
def test_it_slides_over_some_rows_at_a_time(kernel_size, monkeypatch):
    monkeypatch.setattr(convolution, "MAX_UNFOLDED_BYTES", 3 * 8 * 2 * 10 * kernel_size[0] * kernel_size[1])
    kernel, x = random((3, 2, *kernel_size), 1), random((2, 2, 11, 10), 2)
    correlation = ValidCorrelation(kernel, (11, 10), use_fft=False)
    expected = torch.nn.functional.conv2d(x, kernel)
    torch.testing.assert_close(correlation.forward(x), expected, rtol=1e-13, atol=1e-13)
    assert adjoint_defect(correlation) <= 1e-13


@pytest.mark.parametrize(
    ("boundary", "size", "kernel_size", "padding", "is_shared"),
    [
        (ZERO, (11, 10), (6, 7), "same", True),
        (ZERO, (11, 10), (6, 7), "full", True),
        (ZERO, (11, 10), (6, 7), ((1, 4), (0, 9)), True),
        (ZERO, (11, 10), (5, 6), 9, True),
        (ZERO, (6, 5), (9, 11), "same", True),
        (ZERO, (5, 6, 7), (3, 4, 5), "same", True),
        (CIRCULAR, (5, 6, 7), (4, 3, 5), "same", True),
        (CIRCULAR, (8, 6), (9, 5), "same", True),
        (CIRCULAR, (8, 6), (5, 6), "full", False),
        (CIRCULAR, (11, 6), (6, 5), "same", False),
        (wrap(ZERO, (False, True)), (11, 10), (6, 7), "same", True),
        (wrap(UNKNOWN, (False, True)), (11, 10), (6, 7), "same", False),
    ],
)
def test_a_torus_that_holds_the_outside_needs_no_border(boundary, size, kernel_size, padding, is_shared):
    kernel = random((2, 3, *kernel_size))
    operator = Convolution(kernel, size, padding=padding, boundary=boundary)
    assert isinstance(operator.correlation, TorusCorrelation) == is_shared
    x = random((2, *operator.input_shape), seed=1)
    expected = ValidCorrelation(kernel, operator.geometry.extended_size).forward(operator.extension.forward(x))
    torch.testing.assert_close(operator.forward(x), expected, rtol=1e-12, atol=1e-12)
    assert adjoint_defect(operator) <= 1e-12


def test_padding_same_is_that_of_torch_for_even_kernels():
    kernel, x = random((1, 1, 4, 6)), random((1, 1, 11, 12), seed=1)
    operator = Convolution.of_geometry(kernel, Geometry.of_image((11, 12), (4, 6), "same"), "zero")
    with pytest.warns(UserWarning, match="even kernel"):
        expected = torch.nn.functional.conv2d(x, kernel, padding="same")
    torch.testing.assert_close(operator.forward(x), expected, rtol=1e-12, atol=1e-12)


def test_unknown_boundary_crops_to_the_frame():
    operator = Convolution.of_geometry(random((1, 1, 5, 4)), Geometry.of_image((8, 9), (5, 4), "same"), "unknown")
    assert operator.input_shape == (1, 12, 12)
    assert operator.output_shape == (1, 8, 9)
    extended = random(operator.input_shape)
    assert torch.equal(operator.crop_to_frame(extended), extended[:, 2:10, 1:10])


def test_a_kernel_larger_than_the_image_is_refused_where_nothing_is_left():
    with pytest.raises(ShapeError, match=r"5×5 does not fit into an image of 4×8"):
        Geometry.of_image((4, 8), (5, 5), "valid")
    # With room around the image it has a meaning, and conv2d agrees.
    x, kernel = random((1, 1, 2, 3)), random((1, 1, 5, 5))
    operator = Convolution.of_geometry(kernel, Geometry.of_image((2, 3), (5, 5), "same"), "zero")
    torch.testing.assert_close(operator.forward(x), torch.nn.functional.conv2d(x, kernel, padding=2))


def test_a_wrong_adjoint_is_noticed():
    """The law itself must be able to fail."""
    operator = Convolution.of_geometry(random((1, 1, 3, 3)), Geometry.of_image((6, 6), (3, 3), "same"), "reflect")
    operator.adjoint = lambda y: operator.extension.adjoint(y.new_zeros(1).expand(2, 1, 8, 8) + 1)
    assert adjoint_defect(operator) > 1e-3


@pytest.mark.parametrize(
    ("kernel", "size", "error", "message"),
    [
        (torch.ones(3, 3, dtype=torch.int64), (8, 9), UsageError, r"but is torch\.int64"),
        (random((3, 3)) + 0j, (8, 9), UsageError, r"but is torch\.complex128"),
        (random((3, 3)) / 0, (8, 9), MalformedInputError, "no NaN or infinite values"),
        (torch.ones(1, 1, 0, 3), (8, 9), MalformedInputError, r"the kernel of shape \(1, 1, 0, 3\)"),
        (random((3, 3, 3)), (8, 9), ShapeError, "must have 2 axes, or 4 with channels"),
        (random((3, 3)), (8.0, 9), UsageError, r"but is \(8.0, 9\)"),
        (torch.tensor(1.0), (), UsageError, r"but is \(\)"),
    ],
)
def test_what_is_no_kernel_or_no_size_is_refused_in_a_sentence(kernel, size, error, message):
    with pytest.raises(error, match=message):
        Convolution(kernel, size)
