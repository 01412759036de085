"""Custom taps applied and inverted: the product against the plain convolution and its inverse, others against truth."""

from __future__ import annotations

import pytest
import torch
from cases import random

import deconv_cli
from deconv_cli import MalformedInputError, ReceptiveFieldConv2d, ShapeError, TooLargeError, UsageError
from deconv_cli.layer_options import LayerOptions
from deconv_cli.parts import BOUNDARIES

KERNEL = random((3, 2, 3, 2))
IMAGE = random((2, 9, 8), seed=1)


def exponential(pixel, weight):
    return weight * torch.exp(pixel)


@pytest.mark.parametrize("boundary", [name for name in BOUNDARIES if name != "unknown"])
def test_products_are_the_plain_convolution_and_its_inverse(boundary):
    y = deconv_cli.forward_taps(IMAGE, KERNEL, "product", boundary=boundary)
    wanted = deconv_cli.forward(IMAGE, KERNEL, boundary=boundary)
    assert float((y - wanted).abs().max()) < 1e-13
    settings = {"boundary": boundary, "tolerance": 1e-12, "lam": 1e-3}
    found, plain = deconv_cli.invert_taps(y, KERNEL, "product", **settings), deconv_cli.invert(y, KERNEL, **settings)
    assert float((found.image - plain.image).norm() / plain.image.norm()) < 1e-9
    assert found.sigma_max == pytest.approx(plain.spectrum.sigma_max, rel=1e-12)
    settings["lam"] = 0.0
    found = deconv_cli.invert_taps(y, KERNEL, "product", **settings)
    exact = deconv_cli.pseudo_inverse(KERNEL, input_size=(9, 8), boundary=boundary)(y)
    assert float((found.image - exact).norm() / exact.norm()) < 1e-9
    assert found.is_determined
    assert not found.doubts


def test_products_under_an_unknown_boundary_and_another_penalty():
    y = deconv_cli.forward(IMAGE, KERNEL, padding="valid")
    settings = {"boundary": "unknown", "penalty": "gradient", "lam": 1e-2, "tolerance": 1e-12}
    found, plain = deconv_cli.invert_taps(y, KERNEL, "product", **settings), deconv_cli.invert(y, KERNEL, **settings)
    assert found.image.shape == plain.image.shape
    assert float((found.image - plain.image).norm() / plain.image.norm()) < 1e-9


@pytest.mark.parametrize("shape", [(3, 2), (2, 3, 2)])
def test_kernels_for_every_channel_or_for_each(shape):
    kernel, x = random(shape), random((3, 2, 7, 8), seed=2)
    y = deconv_cli.forward_taps(x, kernel, "product", boundary="circular")
    assert float((y - deconv_cli.forward(x, kernel, boundary="circular")).abs().max()) < 1e-13
    settings = {"boundary": "circular", "lam": 1e-3, "tolerance": 1e-12}
    found, plain = deconv_cli.invert_taps(y, kernel, "product", **settings), deconv_cli.invert(y, kernel, **settings)
    assert float((found.image - plain.image).abs().max()) < 1e-9


@pytest.mark.parametrize("tap", ["tan-sum", exponential])
def test_an_overdetermined_problem_gives_the_image_back(tap):
    kernel = 2 * torch.rand(4, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1
    x = 0.3 * torch.rand(2, 2, 12, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    bias = random((4,))
    y = deconv_cli.forward_taps(x, kernel, tap, padding="full", bias=bias)
    found = deconv_cli.invert_taps(y, kernel, tap, padding="full", bias=bias, lam=0.0, tolerance=1e-12)
    assert found.solution.status is deconv_cli.Status.CONVERGED
    assert float((found.image - x).abs().max()) < 1e-8
    assert found.residual.relative < 1e-10
    assert found.is_determined


def test_what_the_data_leave_open_is_told():
    kernel = random((1, 2, 3, 3))
    y = deconv_cli.forward_taps(0.1 * IMAGE, kernel, "tan-sum")
    found = deconv_cli.invert_taps(y, kernel, "tan-sum", lam=0.0, max_iterations=400)
    assert found.undetermined > 0.4
    assert not found.is_determined
    assert any("left open" in doubt.sentence for doubt in found.doubts)


@pytest.mark.parametrize("reduction", ["sum", "product"])
def test_a_layer_with_its_geometry_is_undone(reduction):
    torch.manual_seed(3)
    geometry = {"stride": (2, 1), "padding": (2, 1), "dilation": (2, 1), "bias": True, "reduction": reduction}
    layer = ReceptiveFieldConv2d(1, 6, 2, phi=lambda pixel, weight: torch.exp(pixel * weight), **geometry).double()
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    x = 0.3 * random((1, 8, 7), seed=5)
    y = layer(x).detach()
    found = deconv_cli.invert_taps(y, layer, lam=0.0, input_size=(8, 7), start=0.1, tolerance=1e-12)
    assert found.image.shape == x.shape
    assert float((layer(found.image) - y).detach().norm() / y.norm()) < 1e-9
    if found.is_determined:
        assert float((found.image - x).abs().max()) < 1e-6
    with pytest.raises(ShapeError, match="input_size is"):
        deconv_cli.invert_taps(y, layer, input_size=(12, 7))
    with pytest.raises(UsageError, match="its own padding"):
        deconv_cli.invert_taps(y, layer, padding=1)
    with pytest.raises(UsageError, match="its own tap"):
        deconv_cli.invert_taps(y, layer, "product")


def logarithm(pixel, weight):
    return weight * torch.log(pixel)


def square(pixel, weight):
    return weight * pixel.square()


def test_a_tap_that_is_not_defined_somewhere():
    with pytest.raises(MalformedInputError, match="NaN or infinite values at"):
        deconv_cli.forward_taps(IMAGE, KERNEL, logarithm)
    x = IMAGE.abs() + 0.5
    y = deconv_cli.forward_taps(x, KERNEL, logarithm, boundary="circular")
    with pytest.raises(UsageError, match="NaN or infinite values at the start, where pixels are about 0"):
        deconv_cli.invert_taps(y, KERNEL, logarithm, boundary="circular")
    found = deconv_cli.invert_taps(y, KERNEL, logarithm, boundary="circular", start=1.0, lam=0.0, tolerance=1e-12)
    assert float((found.image - x).abs().max()) < 1e-8
    again = deconv_cli.invert_taps(y, KERNEL, logarithm, boundary="circular", start=found.image, lam=0.0)
    assert again.solution.n_iterations == 0


def test_a_start_without_a_slope():
    y = deconv_cli.forward_taps(IMAGE, KERNEL, square)
    with pytest.raises(UsageError, match="has no slope at the start, where pixels are about 0"):
        deconv_cli.invert_taps(y, KERNEL, square)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"nonnegative": True}, "nonnegative has no use for custom taps"),
        ({"lam": "auto"}, "lambda must be zero or a positive number"),
        ({"light": "linear"}, "light must be stored"),
        ({"start": float("nan")}, "start must be a finite number"),
        ({"tap": "cosine"}, "tap must be one of product, tan-sum"),
        ({"tap": 3}, "or a function"),
        ({"tap": None}, "tap must be one of product, tan-sum or a function"),
    ],
)
def test_settings_that_cannot_be(options, says):
    with pytest.raises(UsageError, match=says):
        deconv_cli.invert_taps(random((3, 9, 8)), KERNEL, **{"tap": "product"} | options)


def test_a_start_of_another_shape_and_too_little_memory():
    with pytest.raises(ShapeError, match="start should be of the shape"):
        deconv_cli.invert_taps(random((3, 9, 8)), KERNEL, "product", start=random((2, 9, 9)))
    with pytest.raises(TooLargeError, match="slopes of 36 taps at 72 outputs"):
        deconv_cli.invert_taps(random((3, 9, 8)), KERNEL, "product", max_memory=1000)


@pytest.mark.parametrize(("shape", "dimensions"), [((3,), 1), ((2, 3, 2), 3), ((2, 1, 2, 3, 2), None), ((3, 2), 3)])
def test_signals_and_stacks(shape, dimensions):
    kernel = random(shape)
    size = (9,) if dimensions == 1 else (4, 5, 6)
    x = random((2, 1, *size), seed=3)
    options = {"boundary": "reflect", "dimensions": dimensions}
    y = deconv_cli.forward_taps(x, kernel, "product", **options)
    assert float((y - deconv_cli.forward(x, kernel, **options)).abs().max()) < 1e-13
    options |= {"lam": 1e-2, "tolerance": 1e-12}
    found, plain = deconv_cli.invert_taps(y, kernel, "product", **options), deconv_cli.invert(y, kernel, **options)
    assert found.image.shape == x.shape
    assert float((found.image - plain.image).abs().max()) < 1e-9
    again = deconv_cli.invert_taps(y, kernel, "product", start=found.image, **options)
    assert again.solution.n_iterations == 0


def test_data_and_weights_may_belong_to_a_graph():
    y = deconv_cli.forward_taps(0.1 * IMAGE, KERNEL, "tan-sum")
    found = deconv_cli.invert_taps(y.requires_grad_(), KERNEL.clone().requires_grad_(), "tan-sum")
    assert not found.image.requires_grad


def test_forward_is_differentiable():
    x = (0.1 * IMAGE[:, :4, :4]).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: deconv_cli.forward_taps(x, KERNEL, "tan-sum"), (x,), fast_mode=True)


@pytest.mark.parametrize("options", [{"stride": 2}, {"dilation": (2, 1)}, {"stride": (1, 2), "dilation": (2, 1)}])
def test_products_of_a_layer_are_its_convolution_and_its_inverse(options):
    kernel = random((9, 2, 2, 3), seed=3)
    y = deconv_cli.forward_taps(IMAGE, kernel, "product", padding=2, **options)
    wanted = deconv_cli.forward(IMAGE, kernel, padding=2, **options)
    assert float((y - wanted).abs().max()) < 1e-13
    found = deconv_cli.invert_taps(
        y, kernel, "product", padding=2, lam=0.0, tolerance=1e-12, input_size=(9, 8), **options
    )
    assert float((found.image - IMAGE).abs().max()) < 1e-8
    assert found.settings.layer == LayerOptions(**options)


def test_a_kernel_for_each_channel_is_strided_too():
    kernel = random((2, 3, 3), seed=4)
    y = deconv_cli.forward_taps(IMAGE, kernel, "product", stride=2)
    one_by_one = [deconv_cli.forward(IMAGE[c : c + 1], kernel[c], stride=2) for c in range(2)]
    assert float((y - torch.cat(one_by_one)).abs().max()) < 1e-13


@pytest.mark.parametrize("options", [{"groups": 2}, {"transposed": True}])
def test_layers_that_custom_taps_do_not_take(options):
    with pytest.raises(UsageError, match=r"take a stride and a dilation, .* leave (groups|transposed) out"):
        deconv_cli.invert_taps(IMAGE, random((2, 2, 3, 3)), "product", **options)
