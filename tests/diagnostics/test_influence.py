"""The depth of influence against the decay of a disturbance in the dense inverse."""

import pytest
import torch
from cases import random

from deconv_cli.diagnostics.well_posedness import InfluenceDepth, assess, influence_depth
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.geometry import Geometry
from deconv_cli.operators.spectrum import kernel_spectrum
from deconv_cli.regularizers import find_penalty

SIZE = (28, 24)
LARGE = (40, 36)


def strong_center(shape, seed):
    """A kernel that is undone within a few pixels."""
    kernel = 0.4 * random(shape, seed=seed) / (shape[1] * shape[2] * shape[3]) ** 0.5
    n = min(shape[:2])
    kernel[:n, :n, (shape[2] - 1) // 2, (shape[3] - 1) // 2] += torch.eye(n, dtype=torch.float64)
    return kernel


def measured_depths(kernel, size, boundary, weight, penalty):
    """Disturb the outermost data of one edge by noise; the tail of its rms in the estimate, for the worst of four."""
    operator = Convolution.of_geometry(kernel, Geometry.of_image(size, kernel.shape[2:], "same"), boundary)
    A = operator.as_matrix()
    L = find_penalty(penalty).operator(operator.input_shape, periodic=False).as_matrix()
    if weight == 0 and len(A) < A.shape[1]:
        inverse = torch.linalg.solve(A @ A.T, A).T
    else:
        inverse = torch.linalg.solve(A.T @ A + weight * L.T @ L, A.T)
    response = inverse.reshape(*operator.input_shape, *operator.output_shape).square()
    depths = []
    rows, columns = (0, 2, 3, 4, 5), (0, 1, 3, 4, 5)
    for by_distance in (
        response[..., :1, :].sum(rows),
        response[..., -1:, :].sum(rows).flip(0),
        response[..., :1].sum(columns),
        response[..., -1:].sum(columns).flip(0),
    ):
        tail = by_distance.flip(0).cumsum(0).flip(0)
        depths.append([int(((tail / tail[0]).sqrt() > part).sum()) for part in (0.1, 0.01, 0.001)])
    return [max(pair) for pair in zip(*depths, strict=True)]


@pytest.mark.parametrize(
    ("boundary", "shape", "lam", "penalty"),
    [
        ("zero", (1, 1, 5, 5), 0.0, "identity"),
        ("reflect", (2, 2, 2, 3), 0.0, "identity"),
        ("reflect", (2, 1, 3, 3), 1e-3, "gradient"),
        ("zero", (2, 2, 2, 3), 1e-3, "gradient"),
        ("reflect", (1, 2, 3, 3), 1e-3, "identity"),
    ],
)
def test_short_influence_is_as_deep_as_measured(boundary, shape, lam, penalty):
    kernel = strong_center(shape, seed=sum(shape))
    weight = lam * kernel_spectrum(kernel, SIZE).sigma_max ** 2
    found = influence_depth(kernel, SIZE, weight=weight, penalty=penalty)
    expected = measured_depths(kernel, SIZE, boundary, weight, penalty)
    for depth, right in zip((found.tenth, found.hundredth, found.thousandth), expected, strict=True):
        assert 0.6 * right - 1 <= depth <= 1.6 * right + 1


@pytest.mark.parametrize("seed", [0, 3])
def test_long_influence_is_as_deep_as_measured(seed):
    kernel = random((1, 1, 3, 3), seed=seed)
    weight = 1e-2 * kernel_spectrum(kernel, LARGE).sigma_max ** 2
    found = influence_depth(kernel, LARGE, weight=weight, penalty="identity")
    expected = measured_depths(kernel, LARGE, "zero", weight, "identity")
    assert expected[1] >= 20
    assert abs(found.tenth - expected[0]) <= 1 + 0.2 * expected[0]
    assert abs(found.hundredth - expected[1]) <= 1 + 0.3 * expected[1]
    # A tenth of the λ reaches clearly further.
    deeper = influence_depth(kernel, LARGE, weight=weight / 10, penalty="identity")
    assert deeper.tenth is None or deeper.tenth >= 1.5 * found.tenth


def test_a_gradient_penalty_reaches_as_deep_as_measured():
    kernel = random((1, 1, 3, 3))
    weight = 1e-2 * kernel_spectrum(kernel, LARGE).sigma_max ** 2
    found = influence_depth(kernel, LARGE, weight=weight, penalty="gradient")
    expected = measured_depths(kernel, LARGE, "zero", weight, "gradient")
    assert abs(found.tenth - expected[0]) <= 1 + 0.2 * expected[0]
    assert found.tenth < influence_depth(kernel, LARGE, weight=weight, penalty="identity").tenth - 2


def test_what_reaches_through_the_image_is_none():
    mean = torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64)
    found = influence_depth(mean, (24, 24), weight=1e-9, penalty="identity")
    assert (found.tenth, found.hundredth, found.thousandth) == (None, None, None)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (8, 8)])
def test_a_point_reaches_nowhere_in_an_image_of_any_size(size):
    point = torch.full((1, 1, 1, 1), 2.0, dtype=torch.float64)
    assert influence_depth(point, size, weight=0.0, penalty="identity") == InfluenceDepth(1, 1, 1)
    geometry = Geometry.of_image(size, (1, 1), "same")
    spectrum = kernel_spectrum(point, size)
    found = assess(point, geometry, "zero", lam=0.0, penalty="identity", spectrum=spectrum)
    assert not found.is_deep


def test_singular_symbols_and_too_many_channels_are_not_measured():
    dependent = random((2, 2, 1, 1))
    dependent[1] = 0
    assert influence_depth(dependent, (16, 16), weight=0.0, penalty="identity") is None
    assert influence_depth(dependent, (16, 16), weight=0.1, penalty="identity") is not None
    assert influence_depth(random((256, 256, 1, 1)), (16, 16), weight=1.0, penalty="identity") is None
