"""The library twin: forward, invert, pseudo_inverse on tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import random

import deconv_cli
from deconv_cli import MalformedInputError, ShapeError, UsageError
from deconv_cli.workflows.apply_kernel import Noise


@pytest.mark.parametrize(("tap", "word"), [(1e300, "large"), (1e-310, "small"), (1e30, "large")])
def test_taps_beyond_the_arithmetic_are_named_before_they_are_cast(tap, word):
    """In float32 the first would be infinite, and the second zero."""
    kernel = torch.tensor([[0.0, tap], [0.0, 0.0]], dtype=torch.float64)
    with pytest.raises(deconv_cli.MalformedInputError, match=rf"the largest tap of the kernel is 1e[+-]\d+, so {word}"):
        deconv_cli.forward(random((1, 8, 8)).float(), kernel)


def test_forward_refuses_an_unknown_boundary():
    with pytest.raises(deconv_cli.UsageError, match="the convolution is not possible"):
        deconv_cli.forward(random((1, 8, 8)), random((3, 3)), boundary="unknown")
    with pytest.raises(deconv_cli.UsageError, match="boundary must be one of zero, circular"):
        deconv_cli.forward(random((1, 8, 8)), random((3, 3)), boundary="mirror")
    with pytest.raises(deconv_cli.ShapeError, match=r"a bias must have one number"):
        deconv_cli.forward(random((1, 8, 8)), random((3, 3)), bias=random((2,)))


def test_one_nan_is_counted_and_placed():
    x = random((1, 8, 8))
    x[0, 3, 4] = float("nan")
    with pytest.raises(deconv_cli.MalformedInputError, match=r"holds 1 values .* the first at \(0, 3, 4\)"):
        deconv_cli.forward(x, random((3, 3)))


@pytest.mark.parametrize(
    ("kernel", "error", "sentence"),
    [
        (torch.zeros(3, 3), deconv_cli.MalformedInputError, "every tap of the kernel is zero"),
        (torch.empty(0, 3), deconv_cli.MalformedInputError, "the kernel is empty"),
        (torch.ones(()), deconv_cli.ShapeError, r"but has \(\)"),
        (torch.full((3, 3), float("inf")), deconv_cli.MalformedInputError, "9 values that are NaN or infinite"),
    ],
)
def test_kernels_that_are_none_are_refused(kernel, error, sentence):
    with pytest.raises(error, match=sentence):
        deconv_cli.forward(random((1, 8, 8)), kernel)


@pytest.mark.parametrize("boundary", ["zero", "circular", "reflect", "symmetric", "replicate"])
def test_invert_undoes_forward(boundary):
    mixing = torch.linalg.qr(random((4, 4))).Q
    kernel = 0.03 * random((4, 4, 3, 3), seed=1)
    kernel[:, :, 1, 1] += mixing
    x, bias = random((2, 4, 16, 15), seed=2), random((4,), seed=3)
    y = deconv_cli.forward(x, kernel, boundary=boundary, bias=bias)
    result = deconv_cli.invert(y, kernel, boundary=boundary, bias=bias, lam=0.0).raise_for_status()
    assert (result.image - x).norm() <= 1e-8 * x.norm()
    assert result.residual.relative <= 1e-9
    inverse = deconv_cli.pseudo_inverse(kernel, input_size=(16, 15), boundary=boundary)
    assert (inverse(y - bias[:, None, None]) - x).norm() <= 1e-8 * x.norm()


def test_unknown_boundary_restores_the_frame_of_a_larger_scene():
    scene = torch.nn.functional.interpolate(random((1, 1, 16, 16)), size=(60, 60), mode="bicubic")[0]
    kernel = torch.ones(3, 3, dtype=torch.float64) / 9
    y = deconv_cli.forward(scene, kernel, padding="valid")
    result = deconv_cli.invert(y, kernel, boundary="unknown", lam=1e-6, penalty="gradient")
    truth = scene[:, 1:-1, 1:-1]
    assert result.image.shape == truth.shape
    assert (result.image - truth).norm() <= 0.02 * truth.norm()
    # A wrong border shows: the same data, restored as zero-padded, are far worse.
    wrong = deconv_cli.invert(y, kernel, boundary="zero", lam=1e-6, penalty="gradient")
    assert (wrong.image - truth).norm() > 10 * (result.image - truth).norm()


def test_a_kernel_larger_than_the_data_needs_a_lambda():
    y, kernel = random((1, 12, 10)), random((71, 71)).abs()
    with pytest.raises(deconv_cli.UsageError, match=r"cannot be chosen from 12×10 samples, .* lam=1e-3"):
        deconv_cli.invert(y, kernel, boundary="unknown", lam="auto")
    assert deconv_cli.invert(y, kernel, boundary="unknown", lam=1e-3).is_trusted


@pytest.mark.parametrize("boundary", ["unknown", "circular", "zero"])
def test_a_kernel_larger_than_a_picture_is_cut_to_it_or_refused(boundary):
    taps, y = deconv_cli.make_kernel("gaussian:1"), random((1, 24, 26), 3).add(2)
    options = {"defaults": "picture", "lam": 1e-2, "boundary": boundary}
    result = deconv_cli.invert(y, torch.nn.functional.pad(taps, [13] * 4), **options)
    # Of an unknown boundary the estimate reaches farther out, under the penalty.
    torch.testing.assert_close(result.image, deconv_cli.invert(y, taps, **options).image, atol=0.05, rtol=0)
    assert "only the middle 23×25 of the kernel's 37×37 taps were used" in result.notes[-1]
    assert deconv_cli.invert(y, torch.full((24, 26), 1 / 624.0), **options).image.shape == y.shape
    flat = torch.full((37, 37), 1 / 37**2)
    with pytest.raises(deconv_cli.ShapeError, match="kernel of 37×37 taps is larger than the picture of 24×26 pixels"):
        deconv_cli.invert(y, flat, **options)
    assert deconv_cli.invert(y, flat, defaults="picture", lam=1e-2, padding="valid").image.shape == (1, 60, 62)


def test_residual_numbers_are_those_of_the_residual():
    x, kernel = random((2, 3, 14, 13)), random((2, 3, 3, 3))
    y = deconv_cli.forward(x, kernel) + 0.1 * random((2, 2, 14, 13), seed=5)
    result = deconv_cli.invert(y, kernel, lam=0.01)
    residual = y - torch.nn.functional.conv2d(result.image, kernel, padding=1)
    assert result.residual.relative == pytest.approx(float(residual.norm() / y.norm()), rel=1e-9)
    assert result.residual.absolute == pytest.approx(float(residual.norm()), rel=1e-9)
    for channel in range(2):
        expected = float(residual[:, channel].norm() / y[:, channel].norm())
        assert result.residual.per_channel[channel] == pytest.approx(expected, rel=1e-9)


def test_precision_is_that_of_the_data_unless_asked_for():
    y, kernel = random((1, 12, 12)), random((3, 3))
    assert deconv_cli.invert(y, kernel, lam=1e-2).image.dtype == torch.float64
    assert deconv_cli.invert(y.float(), kernel, lam=1e-2).image.dtype == torch.float32
    assert deconv_cli.invert(y.float(), kernel, lam=1e-2, dtype="float64").image.dtype == torch.float64
    assert deconv_cli.forward(y.half(), kernel.half()).dtype == torch.float32
    with pytest.raises(deconv_cli.UsageError, match="dtype must be one of float32, float64"):
        deconv_cli.invert(y, kernel, dtype=torch.float16)


def test_not_converged_is_a_status_and_raises_on_request():
    result = deconv_cli.invert(random((1, 16, 16)), random((5, 5)), lam=1e-6, max_iterations=1, method="iterative")
    assert not result.solution.status.is_success
    with pytest.raises(deconv_cli.UntrustworthyResultError, match="iterations ran out"):
        result.raise_for_status()


def test_noise_is_seeded_and_has_the_stated_level():
    image = torch.full((1, 200, 200), 50.0)
    image[0, 0, 0] = 100.0
    gaussian = Noise.parse("gaussian:2.5")
    noisy = gaussian.add(image, seed=1)
    assert torch.equal(noisy, gaussian.add(image, seed=1))
    assert not torch.equal(noisy, gaussian.add(image, seed=2))
    assert float((noisy - image).std()) == pytest.approx(2.5, rel=0.03)
    counts = Noise.parse("poisson:400").add(image, seed=1)
    assert float(counts.mean()) == pytest.approx(50, rel=0.01)
    # 200 counts are a sample of 50: their standard deviation √200 is √200 / 4 in samples.
    assert float((counts - image).flatten()[1:].std()) == pytest.approx(200**0.5 / 4, rel=0.03)
    for text in ("gaussian:-1", "gaussian:0", "gaussian:nan", "poisson:inf"):
        with pytest.raises(deconv_cli.UsageError, match="positive"):
            Noise.parse(text)
    for text, says in (("gaussian", "'gaussian'"), ("gaussian:", "gaussian:SIGMA"), ("poisson:x", "'poisson:x'")):
        with pytest.raises(deconv_cli.UsageError, match=says):
            Noise.parse(text)
    with pytest.raises(deconv_cli.UsageError, match="poisson:PEAK"):
        Noise.parse("salt:3")
    with pytest.raises(deconv_cli.UsageError, match="samples from zero upwards"):
        Noise.parse("poisson:10").add(-image, seed=0)


def test_a_kernel_that_does_not_fit_is_told_before_its_bias():
    with pytest.raises(deconv_cli.ShapeError, match=r"gives 4 channels, but the image of 8×8 samples has 1"):
        deconv_cli.invert(random((1, 8, 8)), random((4, 4, 3, 3)), bias=random((4,)))


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        # Warnings are errors here: a cast would warn, and lose the imaginary part.
        ({"kernel": torch.ones(3, 3, dtype=torch.complex64)}, MalformedInputError, "must be real, but is torch"),
        ({"y": torch.zeros(0, 1, 8, 8, dtype=torch.float64)}, ShapeError, r"at least one image .* \(0, 1, 8, 8\)"),
        *(({"dtype": dtype}, UsageError, r"float32.*float64") for dtype in ("float16", "double", torch.int32, 5)),
        *(({"lam": lam}, UsageError, "^lambda must be a") for lam in ("1e-3", True, [1e-3], 1e-3j)),
        *(({"tolerance": value}, UsageError, "^tolerance must be a") for value in ("tight", (1e-3,))),
        *(({"max_iterations": value}, UsageError, "^max_iterations must be a") for value in (2.5, None)),
        ({"max_memory": "8GiB"}, UsageError, "^max_memory must be a"),
    ],
)
def test_what_cannot_be_inverted_or_set_is_refused(change, error, sentence):
    with pytest.raises(error, match=sentence):
        deconv_cli.invert(**{"y": random((1, 1, 8, 8)), "kernel": random((3, 3)), "boundary": "circular"} | change)


def test_a_list_is_a_padding():
    y, kernel = random((1, 1, 8, 8)), random((3, 3))
    found, expected = (deconv_cli.invert(y, kernel, lam=1e-3, padding=padding) for padding in ([1, 0], (1, 0)))
    assert found.padding == (1, 0)
    assert torch.equal(found.image, expected.image)


def test_numbers_of_other_libraries_are_numbers():
    settings = {"lam": np.float32(0.5), "tolerance": np.float64(1e-3), "max_iterations": np.int64(7)}
    inverse = deconv_cli.pseudo_inverse(random((3, 3)), input_size=(np.int64(8), 9), **settings)
    assert inverse.settings.lam == 0.5
    assert {type(inverse.settings.lam), type(inverse.settings.tolerance)} == {float}
    assert type(inverse.settings.max_iterations) is int


@pytest.mark.parametrize("size", [8, (8,), (8, 8, 8), (8.0, 8), "8,8", (0, 8), (-1, 8), (True, 8), None])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(deconv_cli.UsageError, match="a size must be a height and a width"):
        deconv_cli.pseudo_inverse(random((3, 3)), input_size=size)


KERNEL = random((3, 2, 3, 2))
IMAGE = random((2, 9, 8), seed=1)
SAME = [
    (IMAGE, KERNEL, {"boundary": "symmetric"}),
    (random((3, 2, 7, 8), seed=2), random((2, 3, 2)), {"boundary": "circular"}),
    (random((2, 1, 9), seed=3), random((3,)), {"boundary": "reflect", "dimensions": 1}),
    (random((2, 1, 4, 5, 6), seed=3), random((2, 1, 2, 3, 2)), {"boundary": "reflect"}),
    (random((2, 1, 4, 5, 6), seed=3), random((3, 2)), {"boundary": "reflect", "dimensions": 3}),
    (IMAGE, random((9, 2, 2, 3), seed=3), {"padding": 2, "stride": (1, 2), "dilation": (2, 1)}),
    (IMAGE, KERNEL, {"padding": "full", "bias": random((3,))}),
]


@pytest.mark.parametrize(("x", "kernel", "options"), SAME, ids=[str(n) for n in range(len(SAME))])
def test_products_are_the_plain_convolution(x, kernel, options):
    y = deconv_cli.forward_taps(x, kernel, "product", **options)
    wanted = deconv_cli.forward(x, kernel, **options)
    assert float((y - wanted).abs().max()) < 1e-13


def logarithm(pixel, weight):
    return weight * torch.log(pixel)


def test_a_tap_that_is_not_defined_somewhere():
    with pytest.raises(MalformedInputError, match="NaN or infinite values at"):
        deconv_cli.forward_taps(IMAGE, KERNEL, logarithm)
    assert deconv_cli.forward_taps(IMAGE.abs() + 0.5, KERNEL, logarithm, boundary="circular").isfinite().all()


@pytest.mark.parametrize(("tap", "says"), [("cosine", "tap must be one of product, tan-sum"), (3, "or a function")])
def test_taps_that_cannot_be(tap, says):
    with pytest.raises(UsageError, match=says):
        deconv_cli.forward_taps(IMAGE, KERNEL, tap)


def test_forward_is_differentiable():
    x = (0.1 * IMAGE[:, :4, :4]).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: deconv_cli.forward_taps(x, KERNEL, "tan-sum"), (x,), fast_mode=True)


def test_a_kernel_for_each_channel_is_strided_too():
    kernel = random((2, 3, 3), seed=4)
    y = deconv_cli.forward_taps(IMAGE, kernel, "product", stride=2)
    one_by_one = [deconv_cli.forward(IMAGE[c : c + 1], kernel[c], stride=2) for c in range(2)]
    assert float((y - torch.cat(one_by_one)).abs().max()) < 1e-13
