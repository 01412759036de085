"""The convolution with taps of any kind, against conv2d and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from deconv_cli import ReceptiveFieldConv2d, ShapeError, UsageError
from deconv_cli.kernels.receptive_field import tangent_of_sum

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
    """The product again, as a function that the layer does not know."""
    return pixel * weight


def gradients(layer, x):
    x = x.clone().requires_grad_()
    y = layer(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return y, torch.autograd.grad((weights * y).sum(), [x, layer.weight])


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("way", ["conv2d", "autograd", "autograd in pieces"])
def test_products_summed_are_conv2d(geometry, way):
    settings = dict(geometry)
    if way != "conv2d":
        settings["phi"] = by_multiplying
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
@pytest.mark.parametrize("reduction", ["sum", "product"])
def test_tangents_match_finite_differences(geometry, reduction):
    layer = layer_of(phi=tangent_of_sum, reduction=reduction, chunk_bytes=3000, **geometry)
    x = 0.3 + 0.5 * torch.rand(2, 3, 7, 8, dtype=torch.float64)

    def apply(x, weight):
        return torch.func.functional_call(layer, {"weight": weight}, (x,))

    with torch.no_grad():
        layer.weight.uniform_(0.1, 0.3)
    inputs = (x.requires_grad_(), layer.weight.detach().clone().requires_grad_())
    assert torch.autograd.gradcheck(apply, inputs, fast_mode=True, atol=1e-7, rtol=1e-5)


def test_pieces_stay_within_the_memory_allowed():
    layer = layer_of(phi=by_multiplying, chunk_bytes=4000)
    seen = []
    layer.phi = lambda pixel, weight: seen.append((pixel * weight).numel() * 8) or pixel * weight
    layer(torch.randn(1, 3, 12, 12, dtype=torch.float64))
    assert len(seen) > 4
    assert max(seen) <= 4000


def test_second_derivatives_by_autograd():
    layer = layer_of(phi=tangent_of_sum)
    x = (0.3 * torch.rand(1, 3, 4, 4, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradgradcheck(layer, (x,), fast_mode=True)


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
