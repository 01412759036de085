"""Estimates beyond the quadratic stay on the device of their kernel from data to estimate."""

import pytest
from cases import random
from devices import DOUBLE, cases, check_on_cuda, check_without_numbers, needs_cuda

from deconv_cli.diagnostics.noise_level import estimate_gain, estimate_noise
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.nonnegative import NonnegativeEstimator
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.richardson_lucy import RichardsonLucyEstimator
from deconv_cli.solvers.total_variation import TotalVariationEstimator

pytestmark = pytest.mark.exhaustive

SIZE = (9, 8)
MIXING = random((2, 2, 3, 3)).abs()
DATA = random((2, 2, *SIZE), seed=1)
COUNTS = 10 * DATA.abs()
# The memory that is free is asked of the device, which is not there.
MEMORY = 2**40


def nonnegative(taps, y, boundary, penalty):
    method = "fft" if boundary == "circular" else "strip"
    settings = ResolvedSettings(
        boundary=boundary,
        lam=1e-2,
        penalty=penalty,
        method=method,
        tolerance=1e-5,
        max_iterations=4,
        max_memory=MEMORY,
    )
    return NonnegativeEstimator(PseudoInverse(Kernel(taps, shared=False), SIZE, settings)).solve(y).value


def total_variation(taps, y, boundary, weight):
    settings = ResolvedSettings(boundary=boundary, tolerance=3e-2, max_iterations=11, max_memory=MEMORY)
    estimator = TotalVariationEstimator(Kernel(taps, shared=False), SIZE, settings, weight=weight, noise=0.5)
    return estimator.solve(y).value


def richardson_lucy(taps, y, boundary, gain):
    settings = ResolvedSettings(boundary=boundary, max_iterations=12, max_memory=MEMORY)
    estimator = RichardsonLucyEstimator(Kernel(taps, shared=False), SIZE, settings, gain=gain)
    return estimator.solve(y).value


def noise(y):
    gain = estimate_gain(y)
    return y * estimate_noise(y) * (1.0 if gain is None else gain)


CASES = [
    *(
        pytest.param(nonnegative, MIXING, DATA, boundary, penalty, id=f"nonnegative-{boundary}-{penalty}")
        for boundary, penalty in [
            ("circular", "gradient"),
            ("reflect", "laplacian"),
            ("unknown", "identity"),
        ]
    ),
    *(
        pytest.param(total_variation, MIXING, DATA, boundary, weight, id=f"tv-{boundary}-{weight}")
        for boundary, weight in [("circular", None), ("zero", 0.1), ("unknown", 0.1)]
    ),
    *(
        pytest.param(richardson_lucy, MIXING, COUNTS, boundary, gain, id=f"richardson-lucy-{boundary}-{gain}")
        for boundary, gain in [("circular", None), ("zero", 1.0), ("unknown", None)]
    ),
    pytest.param(noise, random((1, 60, 60)).abs() + 1, id="noise"),
]


@cases(*CASES)
def test_nothing_leaves_the_device(case):
    check_without_numbers(*case)


@cases(*CASES)
def test_nothing_needs_double_precision_where_there_is_none(case):
    task, *inputs = case
    narrow = [value.float() if hasattr(value, "float") else value for value in inputs]
    check_without_numbers(task, *narrow, device="mps", barred=DOUBLE)


@needs_cuda
@cases(*CASES)
def test_cuda_agrees_with_the_cpu(case):
    check_on_cuda(*case, tolerance=1e-4)
