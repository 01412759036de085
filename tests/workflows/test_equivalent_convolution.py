"""A layer as a plain convolution of its phases, and what is said of it, held against its dense matrix."""

from __future__ import annotations

import pytest
import torch
from cases import random

import deconv_cli
from deconv_cli.diagnostics.torus_modes import torus_modes
from deconv_cli.layer_options import LayerOptions
from deconv_cli.operators.layer_convolution import LayerConvolution
from deconv_cli.settings import ReconstructionSettings
from deconv_cli.workflows.measurement import equivalent_convolution
from deconv_cli.workflows.pipeline import Pipeline


@pytest.mark.parametrize("options", [{"stride": 2}, {"groups": 2, "stride": (2, 1)}, {"dilation": 2}])
def test_the_gains_are_those_of_the_loudest_group(options: dict) -> None:
    groups = options.get("groups", 1)
    operator = LayerConvolution(
        random((4, 2, 3, 3), seed=1),
        (8, 6),
        LayerOptions(**options),
        padding=options.get("dilation", 1),
        boundary="circular",
    )
    x = random((3, *operator.input_shape), seed=2)
    residual = operator.forward(x)
    residual[:, : 4 - 4 // groups] = 0  # the last group is the one that leaves something over
    taps, data, estimate, _, _ = equivalent_convolution(operator, residual, x, residual)
    size = data.shape[-2:]
    modes = torus_modes(taps, tuple(size))
    matrix = operator.as_matrix().reshape(4, -1, 2 * groups, 48)[4 - 4 // groups :, :, 2 * groups - 2 :]
    values = torch.linalg.svdvals(matrix.flatten(2).flatten(0, 1))
    assert float(modes.sigma.max()) == pytest.approx(float(values[0]), rel=1e-9)
    squares = (modes.weights[..., None] * modes.sigma.square()).sum()
    assert float(squares) == pytest.approx(float(values.square().sum()), rel=1e-9)
    # Data and estimate are arranged alike: the torus maps the one to the other.
    whole = modes.u @ (modes.sigma[..., None] * (modes.vh @ torch.fft.rfft2(estimate[0]).permute(1, 2, 0)[..., None]))
    sizes = torch.linalg.vector_norm(whole[..., 0], dim=-1)
    expected = torch.linalg.vector_norm(torch.fft.rfft2(data[0]).permute(1, 2, 0), dim=-1)
    torch.testing.assert_close(sizes, expected, rtol=1e-9, atol=1e-9)


def test_a_transposed_layer_has_phases_among_its_outputs() -> None:
    operator = LayerConvolution(
        random((2, 3, 3, 3), seed=1), (5, 4), LayerOptions(transposed=True, stride=2), padding=1
    )
    y = random((3, *operator.output_shape[1:]), seed=2)
    taps, data, *_ = equivalent_convolution(operator, y, random((2, 5, 4), seed=3), y)
    assert taps.shape[:2] == (12, 2)
    assert data.shape == (12, 5, 4)
    assert float(data.square().sum()) == pytest.approx(float(y.square().sum()), rel=1e-12)


@pytest.mark.parametrize("options", [{"stride": 2}, {"dilation": 2, "groups": 2}, {"transposed": True, "stride": 2}])
def test_a_layer_is_diagnosed(options: dict) -> None:
    kernel, x = random((4, 4 // options.get("groups", 1), 3, 3), seed=4), 2 + random((4, 20, 18), seed=5)
    y = deconv_cli.forward(x, kernel, padding=1, **options)
    pipeline = Pipeline(kernel, ReconstructionSettings(lam=1e-3, padding=1, **options))
    diagnosis = pipeline.diagnose(pipeline.reconstruct(y), y)
    assert (diagnosis.resolution is None) == ("stride" in options)
    assert diagnosis.residual.shape == y.shape
    assert 0 < diagnosis.conditioning.degrees_of_freedom < diagnosis.conditioning.n_unknowns
    assert 0 <= diagnosis.null_share_of_data < 1
