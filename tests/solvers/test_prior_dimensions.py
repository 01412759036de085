"""Priors on signals, pictures and stacks: against minima of dense matrices, and the conditions of a minimum."""

import pytest
import torch
from cases import mild_kernel, products, random
from dense_minima import chambolle_pock, projected_gradient

import deconv_cli
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.parts import BOUNDARIES, PENALTIES
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.nonnegative import NonnegativeEstimator
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.richardson_lucy import RichardsonLucyEstimator
from deconv_cli.solvers.solution import Status
from deconv_cli.solvers.total_variation import TotalVariationEstimator

# Taps, the size of the images, and distances of neighbors.
PROBLEMS = {
    "signal": ((1, 1, 3), (11,), None),
    "signal of channels": ((3, 2, 4), (9,), None),
    "stack": ((1, 1, 2, 3, 2), (4, 5, 4), None),
    "stack of planes far apart": ((1, 1, 3, 2, 2), (4, 4, 4), (3.0, 1.0, 1.5)),
    "picture": ((1, 1, 3, 3), (8, 7), None),
    "picture of channels": ((3, 2, 3, 2), (8, 7), None),
}


def taps_of(problem):
    return mild_kernel(PROBLEMS[problem][0]).abs()


@pytest.mark.parametrize(**products(problem=list(PROBLEMS), boundary=list(BOUNDARIES), penalty=list(PENALTIES)))
def test_nonnegative_estimates_are_the_minimum(problem, boundary, penalty):
    _, size, spacing = PROBLEMS[problem]
    spacing = None if penalty == "identity" else spacing
    settings = ResolvedSettings(boundary=boundary, lam=1e-2, penalty=penalty, spacing=spacing, tolerance=1e-9)
    estimate = NonnegativeEstimator(PseudoInverse(Kernel(taps_of(problem), False), size, settings))
    y = random(estimate.operator.output_shape, seed=5)
    solution = estimate.solve(y)
    assert solution.status is Status.CONVERGED
    assert solution.certificate <= 1e-9
    A, L = estimate.operator.as_matrix(), estimate.problem.penalty_operator.as_matrix()
    expected = projected_gradient(A.T @ A + estimate.problem.weight * L.T @ L, A.T @ y.flatten())
    x = solution.value.flatten()
    assert 0.1 < float((x == 0).double().mean()) < 0.95
    torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5 * float(expected.max()))


@pytest.mark.parametrize(**products(boundary=list(BOUNDARIES), problem=list(PROBLEMS)))
def test_no_image_has_less_total_variation(problem, boundary):
    _, size, spacing = PROBLEMS[problem]
    more = {"tolerance": 1e-6, "max_iterations": 20_000, "spacing": spacing}
    settings = ResolvedSettings(boundary=boundary, prior="tv", **more)
    estimate = TotalVariationEstimator(Kernel(taps_of(problem), False), size, settings, weight=0.05)
    operator = estimate.operator
    x = torch.zeros(operator.input_shape, dtype=torch.float64)
    x[:, 1:3] = 1.0
    y = operator.forward(x) + 0.1 * random(operator.output_shape, seed=6)
    solution = estimate.solve(y)
    assert solution.status is Status.CONVERGED
    assert solution.certificate <= 1e-6
    assert (estimate.choice.method == "slab") == (boundary == "unknown" and len(size) != 2)
    # A second implementation: neighbors inside the frame, by distance.
    D = torch.stack([difference(operator.input_shape, axis, boundary == "circular") for axis in range(len(size))])
    if spacing is not None:
        D = D / torch.tensor(spacing, dtype=D.dtype)[:, None, None]
    A = operator.as_matrix()

    def objective(image):
        return float(0.5 * (A @ image - y.flatten()).square().sum() + 0.05 * (D @ image).norm(dim=0).sum())

    expected = chambolle_pock(A, D.flatten(0, 1), y.flatten(), 0.05, len(size))
    lowest = objective(expected)
    assert abs(objective(solution.value.flatten()) - lowest) <= 2e-5 * lowest
    torch.testing.assert_close(
        estimate.frame(solution.value), estimate.frame(expected.reshape(operator.input_shape)), rtol=0, atol=2e-3
    )


def difference(shape, axis, periodic):
    """Take x[i + 1] − x[i] along an axis of space, as a matrix on images of a shape."""
    matrix = torch.eye(shape[axis + 1], dtype=torch.float64).roll(1, 1) - torch.eye(
        shape[axis + 1], dtype=torch.float64
    )
    if not periodic:
        matrix[-1] = 0
    before = torch.eye(int(torch.tensor(shape[: axis + 1]).prod()), dtype=torch.float64)
    after = torch.eye(int(torch.tensor(shape[axis + 2 :]).prod()), dtype=torch.float64)
    return torch.kron(torch.kron(before, matrix), after)


def test_richardson_lucy_finds_light_beyond_the_first_plane():
    """A star between the frame and the end of the kernel's reach is put where it is, and not onto the edge."""
    kernel = torch.ones(5, 3, 3) / 45
    scene = torch.full((1, 16, 14, 14), 1.0)
    scene[0, 1, 7, 7] = 2000
    y = deconv_cli.forward(scene, kernel, dimensions=3, padding="valid")
    truth = scene[:, 2:-2, 1:-1, 1:-1]
    settings = {"dimensions": 3, "method": "richardson-lucy", "gain": 1e-9, "max_iterations": 80}
    unknown = deconv_cli.invert(y, kernel, boundary="unknown", **settings)
    outside = unknown.solution.value[..., :2, :, :]
    assert float(outside.max()) > 50
    assert float(unknown.image.max()) < 3
    reflected = deconv_cli.invert(y, kernel, boundary="symmetric", **settings)
    assert (unknown.image - truth).norm() < 0.1 * (reflected.image - truth).norm()


LAYERS = {
    "strided": ((5, 1, 3, 3), {"stride": 2}),
    "grouped": ((4, 1, 2, 2), {"groups": 2, "dilation": 2}),
    "transposed": ((1, 2, 3, 3), {"transposed": True, "stride": 2}),
}


def layer_of(name: str, **more: object) -> tuple[Kernel, ResolvedSettings]:
    shape, options = LAYERS[name]
    return Kernel(random(shape, seed=3).abs(), False), ResolvedSettings(padding=1, **options, **more)


@pytest.mark.parametrize("name", LAYERS)
def test_priors_of_layers_reach_their_minima(name: str) -> None:
    size = (5, 4)
    kernel, settings = layer_of(name, lam=1e-2, tolerance=1e-9)
    nonnegative = NonnegativeEstimator(PseudoInverse(kernel, size, settings))
    y, A = random(nonnegative.operator.output_shape, seed=5), nonnegative.operator.as_matrix()
    H = A.T @ A + nonnegative.problem.weight * torch.eye(A.shape[1], dtype=A.dtype)
    expected = projected_gradient(H, A.T @ y.flatten())
    found = nonnegative.solve(y).value.flatten()
    assert 0.1 < float((found == 0).double().mean()) < 0.95
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.max()))

    kernel, settings = layer_of(name, prior="tv", tolerance=1e-6, max_iterations=20_000)
    flat = TotalVariationEstimator(kernel, size, settings, weight=0.05)
    shape = flat.operator.input_shape
    D = torch.stack([difference(shape, axis, periodic=False) for axis in range(2)])
    expected = chambolle_pock(A, D.flatten(0, 1), y.flatten(), 0.05, 2)
    solution = flat.solve(y)
    assert solution.certificate <= 1e-5
    torch.testing.assert_close(solution.value.flatten(), expected, rtol=0, atol=2e-3)

    kernel, settings = layer_of(name, tolerance=1e-6, max_iterations=20_000)
    lucy = RichardsonLucyEstimator(kernel, size, settings, gain=1e-12)
    counts = lucy.operator.forward(1 + random(lucy.operator.input_shape).abs())
    estimate = lucy.solve(counts).value
    slope = lucy.operator.adjoint(1 - counts / lucy.operator.forward(estimate).clamp_min(1e-30))
    assert float((estimate * slope).abs().max()) <= 1e-3 * float(counts.max())
