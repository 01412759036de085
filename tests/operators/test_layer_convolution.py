"""Layers as operators: what torch gives, exact adjoints, and the plain convolutions that they consist of."""

from __future__ import annotations

import pytest
import torch
from cases import random
from layer_cases import N_CASES, N_QUICK, TORCH_MODES, LayerCase, case_of
from properties import adjoint_defect, backward_defect, matrix_defect
from torch import Tensor, nn

import deconv_cli
from deconv_cli.errors import ShapeError, UsageError
from deconv_cli.layer_options import LayerOptions
from deconv_cli.operators.geometry import pick_input_size
from deconv_cli.operators.layer_convolution import LayerConvolution

EXHAUSTIVE = [pytest.param(number, marks=pytest.mark.exhaustive) for number in range(N_QUICK, N_CASES)]


@pytest.mark.parametrize("number", [*range(N_QUICK), *EXHAUSTIVE])
def test_forward_is_that_of_torch(number: int) -> None:
    case = case_of(number)
    x = random((2, *case.operator.input_shape), seed=1)
    y = case.operator(x) if case.boundary == "unknown" else _forward(x, case)
    if case.boundary in TORCH_MODES:
        expected = case.module()(x).detach()
    else:
        expected = _reference(case.operator.extension(x), case)
    assert y.shape == expected.shape
    assert float((y - expected).abs().max()) < 1e-12


def _forward(x: Tensor, case: LayerCase) -> Tensor:
    options = {name: getattr(case.options, name) for name in vars(case.options)}
    return deconv_cli.forward(
        x,
        case.operator.kernel,
        dimensions=len(case.size),
        padding=case.padding,
        boundary=case.boundary,
        **options,
    )


def _reference(extended: Tensor, case: LayerCase) -> Tensor:
    """Apply torch's convolution to images with their border."""
    convolve = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[len(case.size) - 1]
    options = case.options
    kernel = case.operator.kernel
    return convolve(extended, kernel, stride=options.stride, dilation=options.dilation, groups=options.groups)


@pytest.mark.parametrize("number", range(0, N_QUICK, 3))
def test_the_adjoint_is_the_transpose(number: int) -> None:
    operator = case_of(number).operator
    assert matrix_defect(operator) < 1e-12
    assert adjoint_defect(operator) < 1e-13
    assert backward_defect(operator) < 1e-12


@pytest.mark.parametrize(("stride", "dilation"), [(2, 1), (3, 2)])
def test_the_adjoint_in_float32_is_that_of_torch(stride: int, dilation: int) -> None:
    taps, y = random((16, 3, 3, 4)).float(), random((2, 16, 5, 4), seed=1).float()
    steps = {"stride": stride, "dilation": dilation}
    expected = nn.functional.conv_transpose2d(y, taps, **steps)
    operator = LayerConvolution(taps, tuple(expected.shape[2:]), LayerOptions(**steps), padding=0)
    assert operator.correlation._folds
    assert float((operator.adjoint(y) - expected).abs().max()) < 1e-4


@pytest.mark.parametrize("number", range(0, N_QUICK, 3))
def test_touched_pixels_are_those_with_entries_in_the_matrix(number: int) -> None:
    operator = case_of(number).operator
    entries = operator.as_matrix().reshape(*operator.output_shape, *operator.input_shape) != 0
    n_axes = len(operator.geometry.image_size)
    of_inputs = entries.flatten(0, n_axes).any(0).any(0)
    assert torch.equal(operator.touched(), of_inputs)


WITHOUT_COPIES = [n for n in range(0, N_QUICK, 3) if case_of(n).boundary in ("zero", "circular")]
"""Copies of pixels add to their gain."""


@pytest.mark.parametrize("number", WITHOUT_COPIES)
def test_the_largest_singular_value_bounds_that_of_the_matrix(number: int) -> None:
    case = case_of(number)
    largest = float(torch.linalg.svdvals(case.operator.as_matrix())[0])
    whole = sum(float(group.abs().sum()) ** 2 for group in case.operator.kernel) ** 0.5
    assert 0 < case.operator.spectrum.sigma_max <= whole
    if case.boundary == "circular" and all(n % s == 0 for n, s in zip(case.size, case.options.stride, strict=True)):
        assert largest <= case.operator.spectrum.sigma_max * (1 + 1e-9)


@pytest.mark.parametrize(
    ("kernel_size", "padding", "wanted", "found"),
    [((3, 3), 1, None, (10, 8)), ((5, 5), 0, None, (13, 11)), ((3, 3), 1, (9, 8), (9, 8))],
    ids=["twice the output", "the smallest", "what was asked for"],
)
def test_the_size_of_the_input_is_picked(kernel_size, padding, wanted, found) -> None:
    assert pick_input_size((5, 4), kernel_size, padding, LayerOptions(stride=2), wanted) == found


def test_an_impossible_size_of_the_input_is_refused_with_the_possible_ones() -> None:
    with pytest.raises(ShapeError, match="its size may be 9×7, 9×8, 10×7, 10×8"):
        pick_input_size((5, 4), (3, 3), 1, LayerOptions(stride=2), (11, 8))
    transposed = LayerOptions(stride=2, transposed=True, output_padding=1)
    assert pick_input_size((10,), (3,), 1, transposed) == (5,)
    with pytest.raises(ShapeError, match="no image gives an output of 9"):
        pick_input_size((9,), (3,), 1, transposed)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"stride": 0}, "stride must be"),
            ({"dilation": (1, 0)}, "dilation must be"),
            ({"groups": (2, 2)}, "groups must be"),
            ({"transposed": 1}, "transposed must be"),
            ({"output_padding": 1}, "output_padding is"),
        ],
    )
    def test_options_that_torch_does_not_take(self, options: dict, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            LayerOptions(**options)

    def test_output_padding_as_large_as_the_stride(self) -> None:
        with pytest.raises(UsageError, match="output_padding must be smaller"):
            LayerConvolution(
                random((1, 1, 3)), (5,), LayerOptions(stride=2, transposed=True, output_padding=2), padding=0
            )

    def test_groups_that_do_not_divide(self) -> None:
        with pytest.raises(ShapeError, match="not a multiple of the"):
            deconv_cli.forward(random((4, 5, 5)), random((3, 2, 3, 3)), groups=2)

    def test_a_boundary_of_a_transposed_layer(self) -> None:
        with pytest.raises(UsageError, match="reads no pixel outside"):
            deconv_cli.forward(random((1, 5, 5)), random((1, 2, 3, 3)), transposed=True, boundary="reflect")
