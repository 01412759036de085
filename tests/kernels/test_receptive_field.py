"""The convolution with taps of any kind, against conv2d, finite differences and autograd."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.nn import functional

from deconv_cli import ReceptiveFieldConv2d, ShapeError, UsageError
from deconv_cli.kernels.receptive_field import PoleWarning, multiply, tangent_of_sum

GEOMETRIES = [
    {},
    {"stride": 2},
    {"padding": (1, 2)},
    {"dilation": 2, "padding": 2},
    {"stride": (2, 3), "padding": 1, "dilation": (1, 2)},
]


def layer_of(**settings):
    return ReceptiveFieldConv2d(3, 4, (3, 2), **settings).double()


def by_multiplying(pixel, weight):
    """The product again, as a function whose slopes the layer does not know."""
    return pixel * weight


def gradients(layer, x):
    x = x.clone().requires_grad_()
    y = layer(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return y, torch.autograd.grad((weights * y).sum(), [x, layer.weight])


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("way", ["conv2d", "autograd", "analytic", "autograd in pieces", "analytic in pieces"])
def test_products_summed_are_conv2d(geometry, way):
    settings = dict(geometry)
    if way != "conv2d":
        settings["phi"] = by_multiplying
    if way.startswith("analytic"):
        settings["slopes"] = lambda pixel, weight: (weight, pixel)
    if way.endswith("pieces"):
        settings["chunk_bytes"] = 3000
    layer = layer_of(**settings)
    x = torch.randn(2, 3, 9, 11, dtype=torch.float64)
    y, (grad_x, grad_w) = gradients(layer, x)

    class Reference(torch.nn.Module):
        weight = layer.weight

        def forward(self, x):
            geometry_of = (layer.stride, layer.padding, layer.dilation)
            return functional.conv2d(x, self.weight, None, *geometry_of)

    wanted, (wanted_x, wanted_w) = gradients(Reference(), x)
    for found, expected in ((y, wanted), (grad_x, wanted_x), (grad_w, wanted_w)):
        assert found.shape == expected.shape
        assert float((found - expected).detach().abs().max()) < 1e-12


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("analytic", [True, False])
@pytest.mark.parametrize("reduction", ["sum", "product"])
def test_tangents_match_finite_differences(geometry, analytic, reduction):
    layer = layer_of(phi=tangent_of_sum, reduction=reduction, analytic=analytic, chunk_bytes=3000, **geometry)
    x = 0.3 + 0.5 * torch.rand(2, 3, 7, 8, dtype=torch.float64)

    def apply(x, weight):
        return torch.func.functional_call(layer, {"weight": weight}, (x,))

    with torch.no_grad():
        layer.weight.uniform_(0.1, 0.3)
    inputs = (x.requires_grad_(), layer.weight.detach().clone().requires_grad_())
    assert torch.autograd.gradcheck(apply, inputs, fast_mode=True, atol=1e-7, rtol=1e-5)


def test_both_ways_agree_where_a_tap_is_zero():
    """∂∏φ/∂φ_i is the product of the others, which exists where a quotient does not."""
    found = []
    for analytic in (True, False):
        torch.manual_seed(0)
        layer = layer_of(phi=multiply, reduction="product", analytic=analytic)
        x = torch.randn(1, 3, 5, 5, dtype=torch.float64)
        x[0, 1, 2, 2] = 0
        found.append(gradients(layer, x))
    (y, (grad_x, grad_w)), (other_y, (other_x, other_w)) = found
    assert torch.equal(y, other_y)
    torch.testing.assert_close(grad_x, other_x, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(grad_w, other_w, rtol=1e-12, atol=1e-15)
    assert grad_x[0, 1, 2, 2] != 0


def test_patches_are_a_view():
    layer = layer_of()
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    assert layer.patches(x).untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


def test_pieces_stay_within_the_memory_allowed():
    layer = layer_of(phi=by_multiplying, chunk_bytes=4000)
    seen = []
    layer.phi = lambda pixel, weight: seen.append((pixel * weight).numel() * 8) or pixel * weight
    layer(torch.randn(1, 3, 12, 12, dtype=torch.float64))
    assert len(seen) > 4
    assert max(seen) <= 4000


def test_second_derivatives_by_autograd():
    layer = layer_of(phi=tangent_of_sum, analytic=False)
    x = (0.3 * torch.rand(1, 3, 4, 4, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradgradcheck(layer, (x,), fast_mode=True)


@pytest.mark.parametrize("analytic", [True, False])
def test_a_warning_near_a_pole(analytic):
    layer = layer_of(phi=tangent_of_sum, analytic=analytic)
    x = torch.zeros(1, 3, 5, 5, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)
    x[0, 0, 2, 2] = torch.pi / 2 - float(layer.weight[0, 0, 1, 1].detach()) - 1e-5
    with pytest.warns(PoleWarning, match="near a pole"):
        layer(x)


@pytest.mark.parametrize("analytic", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_warning_where_most_taps_are_near_a_pole(analytic, dtype):
    """Then the median is large as well, and tells nothing."""
    layer = layer_of(phi=tangent_of_sum, analytic=analytic).to(dtype)
    with torch.no_grad():
        layer.weight.fill_(0.1)
    x = torch.full((1, 3, 5, 5), torch.pi / 2 - 0.1 - 3e-4, dtype=dtype)
    with pytest.warns(PoleWarning, match="^864 of 864 taps are near a pole"):
        layer(x)
    x[..., :1] = 0
    with pytest.warns(PoleWarning, match="near a pole"):
        layer(x)


@pytest.mark.parametrize(
    ("phi", "pixel"), [(lambda pixel, weight: (pixel * weight).square(), 1e3), (lambda p, w: torch.exp(p + w), 10.0)]
)
def test_large_taps_of_a_smooth_function_are_no_pole(phi, pixel):
    layer = layer_of(phi=phi)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    x = pixel + torch.rand(1, 3, 5, 5, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(layer(x).detach().min()) > 1e4


def test_an_image_without_a_batch_axis_and_a_bias():
    layer = layer_of(phi=tangent_of_sum, bias=True)
    with torch.no_grad():
        layer.bias.copy_(torch.arange(4.0))
    x = torch.rand(3, 6, 6, dtype=torch.float64)
    y = layer(x)
    assert y.shape == (4, 4, 5)
    assert torch.equal(y, layer(x[None])[0])
    without = layer_of(phi=tangent_of_sum)
    without.weight = layer.weight
    torch.testing.assert_close(y - without(x), torch.arange(4.0, dtype=torch.float64)[:, None, None].expand(4, 4, 5))


@pytest.mark.parametrize(
    "settings", [{"reduction": "mean"}, {"stride": 0}, {"padding": -1}, {"kernel_size": (1, 2, 3)}, {"chunk_bytes": 0}]
)
def test_settings_that_cannot_be(settings):
    with pytest.raises(UsageError):
        ReceptiveFieldConv2d(**{"in_channels": 1, "out_channels": 1, "kernel_size": 3} | settings)


def test_inputs_that_do_not_fit():
    layer = layer_of(phi=tangent_of_sum)
    with pytest.raises(ShapeError, match=r"\(B, 3, H, W\)"):
        layer(torch.zeros(2, 4, 9, 9))
    with pytest.raises(ShapeError, match="does not fit"):
        layer(torch.zeros(1, 3, 2, 9))
