"""The distance that a solution states is never below the true one; see also `test_stated_bounds.py`."""

import pytest
import torch
from cases import random

from deconv_cli.errors import UntrustworthyResultError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators.convolution import Convolution
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.solution import Status

SIZE = (12, 11)
BOX = torch.ones(5, 5, dtype=torch.float64) / 25
GAUSS = torch.exp(-((torch.arange(7.0, dtype=torch.float64) - 3) ** 2) / 4)
KERNELS = {
    "box": BOX,
    "gauss": torch.outer(GAUSS, GAUSS) / GAUSS.sum() ** 2,
    "random": random((3, 3)),
    "channels": random((2, 2, 3, 3)),
}


def solved(taps, boundary, method, *, seed=2, **settings):
    """Solve noisy data; gives the solution and its true distance from the dense minimizer, relative to its norm."""
    wanted = ResolvedSettings(boundary=boundary, method=method, **settings)
    inverse = PseudoInverse(Kernel.from_tensor(taps), SIZE, wanted)
    operator = inverse.operator
    y = operator.forward(random(operator.input_shape).to(taps.dtype))
    y = y + 1e-3 * random(operator.output_shape, seed=seed).to(taps.dtype)
    solution = inverse.solve(y)
    wide = Convolution.of_geometry(operator.kernel.double(), operator.geometry, operator.boundary)
    penalty = inverse.problem.penalty_operator.as_matrix()
    stacked = torch.cat([wide.as_matrix(), inverse.problem.weight**0.5 * penalty])
    data = torch.cat([y.double().flatten(), torch.zeros(len(penalty), dtype=torch.float64)])
    expected = torch.linalg.lstsq(stacked, data).solution
    x = solution.value.double().flatten()
    return solution, float((x - expected).norm() / x.norm())


def test_float32_is_refined_where_its_gradient_is_rounding():
    """A solution in float32 alone is off by 2 % here, with a certificate below the tolerance."""
    solution, distance = solved(KERNELS["gauss"].float(), "reflect", "iterative", lam=1e-6)
    assert solution.status is Status.CONVERGED
    assert solution.value.dtype == torch.float32
    assert distance <= solution.distance_bound <= 0.01


def test_what_stays_too_far_is_inaccurate():
    solution, _ = solved(KERNELS["box"], "unknown", "iterative", lam=1e-10, tolerance=1e-6, max_iterations=5)
    assert solution.status is Status.INACCURATE
    assert solution.certificate <= 1e-6
    assert not solution.status.is_success
    with pytest.raises(UntrustworthyResultError, match="more than 1 % away"):
        solution.raise_for_status()


def test_nothing_is_stated_where_nothing_is_known():
    inverse = PseudoInverse(Kernel.from_tensor(KERNELS["random"]), SIZE, ResolvedSettings(boundary="zero"))
    solution = inverse.solve(random(inverse.operator.output_shape))
    assert solution.distance_bound is None
    circular = PseudoInverse(Kernel.from_tensor(KERNELS["random"]), SIZE, ResolvedSettings(boundary="circular"))
    assert 0 < circular.solve(random(circular.operator.output_shape)).distance_bound < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("penalty", ["identity", "gradient", "laplacian"])
@pytest.mark.parametrize("lam", [1e2, 1e4])
def test_a_heavy_penalty_is_solved(penalty, lam, dtype):
    """In float32 the gradient of this penalty is rounded by more than the tolerance."""
    for boundary in ("zero", "unknown", "reflect"):
        solution, distance = solved(KERNELS["gauss"].to(dtype), boundary, "strip", lam=lam, penalty=penalty)
        assert solution.status is Status.CONVERGED, boundary
        assert distance <= 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("boundary", ["zero", "unknown", "reflect"])
def test_the_heaviest_penalty_leaves_the_strip_near_and_knowing_it(boundary, dtype):
    """The gradient is all rounding then, and no measure of the distance."""
    tolerance = 1e-6 if dtype == torch.float32 else 1e-10
    solution, distance = solved(KERNELS["gauss"].to(dtype), boundary, "strip", lam=1e8, penalty="laplacian")
    assert solution.certificate > 1e-9
    # The dense solution that the distance is measured to is rounded too: λ times the last place is 2e-8 here.
    assert distance <= solution.distance_bound + 1e-9 <= 20 * tolerance
    assert (solution.status is Status.CONVERGED) == (solution.distance_bound <= tolerance)


def test_a_start_that_is_good_enough_states_its_distance_too():
    """Under a penalty on differences the iterations tell the distance; where none is needed, the condition number."""
    taps = torch.zeros(3, 3, dtype=torch.float64)
    taps[1, 1], taps[1, 2] = 1.0, 0.2
    settings = ResolvedSettings(boundary="unknown", method="iterative", lam=1e-9, penalty="gradient", tolerance=0.1)
    inverse = PseudoInverse(Kernel.from_tensor(taps), (24, 22), settings)
    solution = inverse.solve(inverse.operator.forward(random(inverse.operator.input_shape)))
    assert solution.status is Status.CONVERGED
    assert solution.distance_bound is not None
    assert solution.distance_bound < 0.01
