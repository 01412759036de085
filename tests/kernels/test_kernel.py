"""Kernels in canonical form, and with their places: what is refused, and how channels and images meet them."""

import pytest
import torch
from cases import random

from deconv_cli.errors import MalformedInputError, ShapeError, UsageError
from deconv_cli.kernels.kernel import Kernel, stack_kernels
from deconv_cli.kernels.kernel_field import KernelField
from deconv_cli.operators.convolution import Convolution
from deconv_cli.workflows.apply_kernel import forward


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_taps_beyond_the_range_of_squares_are_refused(dtype, sign):
    limits = torch.finfo(dtype)
    shape = random((3, 3), dtype=dtype).abs() / 9 * sign
    shape[1, 1] = sign
    fits = [limits.max**0.5 * 0.9, limits.tiny**0.5 * 1.1, 1.0]
    for size in fits:
        assert torch.equal(Kernel.from_tensor(size * shape).taps[0, 0], size * shape)
    name = str(dtype).removeprefix("torch.")
    for size, word in (
        (limits.max**0.5 * 1.1, "large"),
        (limits.max * 0.5, "large"),
        (limits.tiny**0.5 * 0.9, "small"),
    ):
        with pytest.raises(MalformedInputError, match=f"so {word} that its square exceeds the range of {name}; scale"):
            Kernel.from_tensor(size * shape)


def test_small_taps_beside_a_large_one_are_fine():
    taps = torch.tensor([[1.0, 1e-300, 0.0]], dtype=torch.float64)
    assert Kernel.from_tensor(taps).size == (1, 3)


@pytest.mark.parametrize("shape", [(), (1, 1, 3, 3, 3, 3)])
def test_kernels_have_one_to_five_axes(shape):
    with pytest.raises(ShapeError, match=r"shape \(kH, kW\) or \(C_out, C_in, kH, kW\), but has"):
        Kernel.from_tensor(random(shape))
    with pytest.raises(ShapeError, match=r"shape \(kW\) or \(C_out, C_in, kW\), but has"):
        Kernel.from_tensor(random((2, 2, 3, 3)), dimensions=1)


def test_kernels_of_channels_come_one_by_one():
    taps = random((4, 3, 5))
    kernel = Kernel.of_any(taps)
    assert kernel.is_per_channel
    assert kernel.n_inputs(4) == kernel.n_outputs(4) == 4
    for channel, own in enumerate(taps):
        assert torch.equal(kernel.of_channel(channel).taps[0, 0], own)
        assert kernel.of_channel(channel).shared
    assert Kernel.of_any(taps[0]).shared
    with pytest.raises(
        ShapeError, match=r"only invert and forward take a kernel for each channel, of shape \(4, 3, 5\)"
    ):
        Kernel.from_tensor(taps)
    with pytest.raises(ShapeError, match=r"is for 4 channels, but the image of 6×6 samples has 3"):
        kernel.check_channels(random((3, 6, 6)))
    with pytest.raises(MalformedInputError, match="zero"):
        Kernel.of_any(torch.stack([taps[0], torch.zeros(3, 5)]))


def test_kernels_of_several_sizes_keep_their_origins():
    kernels = [random((3, 3)), random((4, 2)), random((1, 5))]
    stacked = stack_kernels(kernels)
    assert stacked.shape == (3, 4, 5)
    x = random((1, 9, 8))
    for plane, kernel in zip(stacked, kernels, strict=True):
        torch.testing.assert_close(forward(x, plane), forward(x, kernel))


@pytest.mark.parametrize("k", [(4,), (2, 3), (2, 3, 4)])
def test_size_gain_and_channels_are_those_of_any_number_of_axes(k):
    taps = random((2, 3, *k))
    kernel = Kernel(taps, shared=False)
    assert kernel.size == k
    torch.testing.assert_close(torch.tensor(kernel.dc_gain, dtype=torch.float64), taps.flatten(2).sum(-1))
    images = random((5, 3, *[6] * len(k)))
    assert kernel.split(images) is images
    outputs = images[:, :2]
    assert kernel.split(outputs, are_outputs=True) is outputs
    with pytest.raises(ShapeError, match=r"takes 3 channels, but the image of .* samples has 2"):
        kernel.split(outputs)
    with pytest.raises(ShapeError, match=r"shape \(C, (D, )?(H, )?W\) or \(B, C, (D, )?(H, )?W\), but has"):
        kernel.split(images[0, 0])
    with pytest.raises(ShapeError, match="at least one image of one channel"):
        kernel.split(images[:0])


@pytest.mark.parametrize("k", [(4,), (2, 3), (2, 3, 4)])
def test_channels_of_a_shared_kernel_join_the_batch(k):
    kernel = Kernel(random((1, 1, *k)), shared=True)
    images = random((5, 3, *[6] * len(k)))
    arranged = kernel.split(images)
    assert arranged.shape == (5, 3, 1, *[6] * len(k))
    assert torch.equal(kernel.join(arranged), images)
    blurred = kernel.join(Convolution(kernel, images.shape[2:])(arranged))
    for channel in range(3):
        alone = Convolution(kernel.taps, images.shape[2:])(images[:, channel : channel + 1])
        torch.testing.assert_close(blurred[:, channel : channel + 1], alone)


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
