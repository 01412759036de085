"""Kernels with their places: what a field refuses, and how it meets images."""

import pytest
import torch
from cases import random

from deconv_cli.errors import MalformedInputError, ShapeError, UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.kernels.kernel_field import KernelField
from deconv_cli.operators.convolution import Convolution

TAPS = random((2, 3, 4, 5))
ROWS, COLUMNS = (0.25, 0.75), (0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    ("taps", "rows", "columns", "error", "message"),
    [
        (TAPS[0], ROWS, COLUMNS, ShapeError, r"\(n_rows, n_columns, kH, kW\).*\(3, 4, 5\), 2 rows and 3 columns"),
        (TAPS, (0.5,), COLUMNS, ShapeError, "1 rows and 3 columns"),
        (
            TAPS,
            (0.75, 0.25),
            COLUMNS,
            MalformedInputError,
            "rows of .* between 0 and 1, increasing",
        ),
        (TAPS, ROWS, (0.0, 0.5, 1.1), MalformedInputError, "the columns"),
        (TAPS, (float("nan"), 0.5), COLUMNS, MalformedInputError, "the rows"),
        (TAPS * float("inf"), ROWS, COLUMNS, MalformedInputError, "finite"),
        (TAPS.to(torch.complex128), ROWS, COLUMNS, MalformedInputError, "complex128"),
        (TAPS * torch.tensor([0, 1, 1])[:, None, None], ROWS, COLUMNS, MalformedInputError, "one place are all zero"),
    ],
)
def test_what_is_no_field_is_refused(taps, rows, columns, error, message):
    with pytest.raises(error, match=message):
        KernelField(taps, rows, columns)


def test_places_may_come_as_tensors():
    field = KernelField(TAPS, torch.tensor(ROWS), torch.tensor(COLUMNS))
    assert (field.rows, field.columns, field.grid) == (ROWS, COLUMNS, (2, 3))
    assert torch.equal(field.middle, TAPS[0, 1])


def test_a_kernel_of_a_field_takes_every_channel_alike():
    kernel = Kernel.of_any(KernelField(TAPS, ROWS, COLUMNS), torch.float32)
    assert kernel.shared
    assert kernel.size == (4, 5)
    assert kernel.all_taps.dtype == kernel.taps.dtype == torch.float32
    assert kernel.all_taps.shape == TAPS.shape
    assert kernel.detached().all_taps.data_ptr() != kernel.all_taps.data_ptr()


def test_derivatives_in_a_field_are_refused():
    with pytest.raises(UsageError, match="detach its taps"):
        Kernel.of_any(KernelField(TAPS.clone().requires_grad_(), ROWS, COLUMNS))


@pytest.mark.parametrize("wrap", [lambda field: field, Kernel.of_any])
def test_a_field_is_not_taken_for_one_kernel(wrap):
    with pytest.raises(UsageError, match="not a single convolution"):
        Convolution(wrap(KernelField(TAPS, ROWS, COLUMNS)), (9, 9))
