"""Signals, pictures and stacks by the doors of the library, against torch and the dense matrix."""

from __future__ import annotations

import itertools
import random as numbers
from dataclasses import replace

import pytest
import torch
from cases import random
from properties import reference_convolution

import deconv_cli
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators.geometry import Geometry
from deconv_cli.parts import BOUNDARIES
from deconv_cli.workflows.resolve_settings import resolve

N_COMBINATIONS = 40
N_MANY = 400


def combinations(n):
    """Draw problems of one to three axes: odd and even kernels, every border, paddings by word and by axis."""
    draw, found = numbers.Random(11), []
    names = itertools.cycle(BOUNDARIES)
    while len(found) < n:
        n_axes, boundary = 1 + len(found) % 3, next(names)
        largest = {1: 24, 2: 8, 3: 5}[n_axes]
        size = tuple(draw.randint(3, largest) for _ in range(n_axes))
        kernel_size = tuple(draw.randint(1, {1: 6, 2: 4, 3: 3}[n_axes]) for _ in range(n_axes))
        channels = draw.choice([(1, 1), (1, 1), (2, 2), (3, 2), (2, 3), (2, 1), (1, 2)])
        by_axis = tuple(draw.randint(0, k) for k in kernel_size)
        padding = draw.choice(["same", "same", "valid", "full", draw.randint(0, 1), by_axis])
        try:
            geometry = Geometry.of_image(size, kernel_size, padding)
            geometry.check_boundary(BOUNDARIES[boundary])
        except deconv_cli.ShapeError:
            continue
        shape = (*channels, *kernel_size)
        values = torch.linalg.svdvals(dense(random(shape, seed=8), size, padding, boundary).as_matrix())
        # The pseudo-inverse of others is not known to so many digits.
        if not bool(((values > 1e-13 * values[0]) & (values < 1e-6 * values[0])).any()):
            found.append((boundary, padding, shape, size))
    return found


def named(cases):
    return {"argvalues": cases, "ids": [f"{b}-{p}-{s}-{n}".replace(" ", "") for b, p, s, n in cases]}


def dense(taps, size, padding, boundary):
    return deconv_cli.Convolution(taps, size, padding=padding, boundary=boundary)


def check_forward(boundary, padding, shape, size):
    if boundary == "unknown":
        return
    taps, x = random(shape, seed=5), random((2, shape[1], *size), seed=6)
    pads = Geometry.of_image(size, shape[2:], padding).pads
    bias = random(shape[:1], seed=7)
    expected = reference_convolution(x, taps, pads, boundary) + bias.reshape(-1, *[1] * len(size))
    n = len(size)
    found = deconv_cli.forward(x, taps, dimensions=n, padding=padding, boundary=boundary, bias=bias)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    one = deconv_cli.forward(x[0], taps, dimensions=n, padding=padding, boundary=boundary, bias=bias)
    torch.testing.assert_close(one, expected[0], rtol=1e-12, atol=1e-12)


def check_inverse(boundary, padding, shape, size, lam):
    taps, n = random(shape, seed=8), len(size)
    inverse = deconv_cli.pseudo_inverse(
        taps, input_size=size, dimensions=n, padding=padding, boundary=boundary, lam=lam, tolerance=1e-11
    )
    operator = dense(taps, size, padding, boundary)
    y = random((2, *operator.output_shape), seed=9)
    matrix, data = operator.as_matrix(), y.flatten(1)
    if lam > 0:
        weight = inverse.problem.weight
        matrix = torch.cat([matrix, weight**0.5 * torch.eye(matrix.shape[1], dtype=matrix.dtype)])
        data = torch.cat([data, data.new_zeros(2, matrix.shape[1])], dim=1)
    expected = (data @ torch.linalg.pinv(matrix, rtol=1e-12).T).reshape(2, *operator.input_shape)
    expected = operator.crop_to_frame(expected)
    found = inverse(y)
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("boundary", "padding", "shape", "size"), **named(combinations(N_COMBINATIONS)))
class TestCombinations:
    def test_forward_equals_torch(self, boundary, padding, shape, size):
        check_forward(boundary, padding, shape, size)

    @pytest.mark.parametrize("lam", [0.0, 1e-3])
    def test_the_pseudo_inverse_equals_the_dense_one(self, boundary, padding, shape, size, lam):
        assert check_inverse(boundary, padding, shape, size, lam) <= 1e-9


@pytest.mark.exhaustive
@pytest.mark.parametrize("lam", [0.0, 1e-3])
def test_many_more_combinations(lam):
    for boundary, padding, shape, size in combinations(N_MANY):
        check_forward(boundary, padding, shape, size)
        assert check_inverse(boundary, padding, shape, size, lam) <= 1e-9, (boundary, padding, shape, size)


STACK = random((2, 3, 4, 9, 8))
BLUR = torch.tensor([[0.0, 1.0, 0.0], [2.0, 5.0, 1.0], [0.0, 1.0, 1.0]], dtype=torch.float64) / 11


class TestPlanes:
    @pytest.mark.parametrize("stack", [STACK, STACK[0]])
    def test_a_kernel_of_two_axes_blurs_plane_by_plane(self, stack):
        found = deconv_cli.forward(stack, BLUR, dimensions=3, padding="valid")
        planes = stack.unbind(-3)
        expected = torch.stack([deconv_cli.forward(plane, BLUR, padding="valid") for plane in planes], dim=-3)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)

    @pytest.mark.parametrize("stack", [STACK, STACK[0]])
    def test_and_is_undone_plane_by_plane(self, stack):
        y = deconv_cli.forward(stack, BLUR, dimensions=3)
        found = deconv_cli.invert(y, BLUR, dimensions=3, lam=1e-3)
        planes = [deconv_cli.invert(plane, BLUR, lam=1e-3).image for plane in y.unbind(-3)]
        torch.testing.assert_close(found.image, torch.stack(planes, dim=-3), rtol=0, atol=1e-9)

    def test_lines_of_a_picture(self):
        line = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64) / 4
        found = deconv_cli.forward(STACK[0, :, 0], line, dimensions=2, boundary="reflect")
        expected = deconv_cli.forward(STACK[0, :, 0], line[None], boundary="reflect")
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)

    def test_what_takes_no_planes_says_what_to_do(self):
        with pytest.raises(deconv_cli.UsageError, match=r"spans only 2 of 3 axes; build .* with dimensions=2"):
            deconv_cli.pseudo_inverse(BLUR, input_size=(4, 9, 8), dimensions=3)
        with pytest.raises(deconv_cli.ShapeError, match="works plane by plane if dimensions gives"):
            deconv_cli.forward(STACK, BLUR)
        with pytest.raises(deconv_cli.ShapeError, match="of 3 dimensions must have shape"):
            deconv_cli.forward(STACK[0, 0], BLUR, dimensions=3)


class TestWhatTheAxesSay:
    @pytest.mark.parametrize(
        ("shape", "dimensions", "n_axes", "channels"),
        [
            ((3,), None, 1, (1, 1)),
            ((2, 3), 1, 1, (2, 1)),
            ((2, 4, 3), 1, 1, (2, 4)),
            ((2, 3), None, 2, (1, 1)),
            ((4, 2, 3), None, 2, (4, 1)),
            ((4, 2, 3), 2, 2, (4, 1)),
            ((4, 5, 2, 3), None, 2, (4, 5)),
            ((4, 2, 3), 3, 3, (1, 1)),
            ((4, 2, 3, 2), 3, 3, (4, 1)),
            ((4, 5, 2, 3, 2), None, 3, (4, 5)),
        ],
    )
    def test_of_a_kernel(self, shape, dimensions, n_axes, channels):
        kernel = Kernel.of_any(random(shape), dimensions=dimensions)
        assert (kernel.n_axes, tuple(kernel.taps.shape[:2])) == (n_axes, channels)
        assert kernel.size == shape[-n_axes:]
        assert kernel.is_per_channel == (len(shape) == n_axes + 1)

    @pytest.mark.parametrize("dimensions", [0, 4, 2.5, "3", True])
    def test_there_are_one_two_or_three(self, dimensions):
        with pytest.raises(deconv_cli.UsageError, match="dimensions must be 1, 2 or 3"):
            deconv_cli.ReconstructionSettings(dimensions=dimensions)
        with pytest.raises(deconv_cli.UsageError, match="dimensions must be 1, 2 or 3"):
            deconv_cli.forward(STACK, BLUR, dimensions=dimensions)

    @pytest.mark.parametrize(("n", "sentence"), [(1, "a length"), (2, "a height and a"), (3, "a depth, a height")])
    def test_of_a_size(self, n, sentence):
        with pytest.raises(deconv_cli.UsageError, match=f"a size must be {sentence}"):
            deconv_cli.pseudo_inverse(random((2,) * n), input_size=(5,) * (n + 1), dimensions=n)


@pytest.mark.parametrize("n_axes", [1, 3])
class TestEveryDoor:
    def test_channels_with_kernels_and_lambdas_of_their_own(self, n_axes):
        taps, size = random((3, *(3,) * n_axes)).abs(), (9, 7, 6)[:n_axes]
        x, bias = random((2, 3, *size), seed=1), random((3,), seed=2)
        y = deconv_cli.forward(x, taps, dimensions=n_axes, bias=bias, boundary="symmetric")
        settings = {"dimensions": n_axes, "boundary": "symmetric"}
        found = deconv_cli.invert(y, taps, bias=bias, lam=(1e-2, 1e-3, 1e-4), **settings)
        assert found.image.shape == x.shape
        for c, lam in enumerate((1e-2, 1e-3, 1e-4)):
            one = deconv_cli.invert(y[:, c : c + 1] - bias[c], taps[c], lam=lam, **settings)
            torch.testing.assert_close(found.image[:, c : c + 1], one.image, rtol=0, atol=1e-9)
        assert found.settings.dimensions == n_axes

    def test_light(self, n_axes):
        curve = deconv_cli.ToneCurve.srgb(255.0)
        taps, size = random((3,) * n_axes).abs(), (12, 9, 8)[:n_axes]
        x = 255 * random((3, *size)).sigmoid()
        settings = {"dimensions": n_axes, "boundary": "circular", "tone_curve": curve}
        y = deconv_cli.forward(x, taps / taps.sum(), **settings)
        found = deconv_cli.invert(y, taps / taps.sum(), lam=0.0, **settings)
        assert (found.image - x).norm() <= 1e-6 * x.norm()


def test_a_picture_behind_a_stride_gets_the_defaults_of_pictures_but_for_the_noise():
    kernel = Kernel.of_any(deconv_cli.make_kernel("gaussian:1"), dimensions=2)
    settings = deconv_cli.ReconstructionSettings(stride=2, defaults="picture")
    found = resolve(settings, kernel)
    assert (found.settings.boundary, found.settings.penalty, found.settings.noise) == ("unknown", "gradient", "white")
    assert found.chooses_lambda
    assert not resolve(replace(settings, defaults="tensor"), kernel).chooses_lambda
