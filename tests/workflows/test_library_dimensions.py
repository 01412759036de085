"""Signals, pictures and stacks by the doors of the library, against torch and the dense matrix."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import random

import deconv_cli
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.workflows.resolve_settings import resolve

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
