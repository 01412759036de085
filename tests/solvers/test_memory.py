"""The numbers that choose a method: memory, predicted and measured, and the bound on the condition number."""

import math
import subprocess
import sys

import pytest
import torch
from cases import ALL_CASES, random

import deconv_cli
from deconv_cli.operators.convolution import Convolution
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.solver import choose_method
from deconv_cli.vocabulary import parse_memory

# Peak of the resident memory over that of a small problem, which has loaded all the code.
MEASURE = """
import sys, warnings
from pathlib import Path
import torch, deconv_cli
from deconv_cli.solvers.solver import find_solver
warnings.simplefilter("ignore")
torch.set_num_threads(1)
method, boundary, lam, shape, size = sys.argv[1], sys.argv[2], float(sys.argv[3]), eval(sys.argv[4]), int(sys.argv[5])
def peak():
    # Not ru_maxrss, which a child inherits from a larger parent.
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
def restore(shape, size):
    kernel = 0.1 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for channel in range(min(shape[:2])):
        kernel[(channel, channel, *(n // 2 for n in shape[2:]))] += 3
    for axis in range(2, kernel.ndim) if method == "dct" else ():
        kernel += kernel.flip(axis)
    inverse = deconv_cli.pseudo_inverse(
        kernel, input_size=(size,) * (len(shape) - 2), boundary=boundary, lam=lam, method=method, max_iterations=4
    )
    inverse.solve(torch.randn(inverse.problem.operator.output_shape, dtype=torch.float64))
    return find_solver(inverse.choice.method).cost(inverse.problem).n_bytes()
restore((1, 1, *(3 for _ in shape[2:])), 12)
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
before = peak()
estimate = restore(shape, size)
print(estimate / (peak() - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells the peak of a process in /proc")
@pytest.mark.parametrize(
    ("method", "boundary", "lam", "shape", "size"),
    [
        ("fft", "circular", 0.0, (8, 8, 3, 3), 256),
        ("fft", "circular", 1e-2, (16, 8, 3, 3), 256),
        ("dct", "symmetric", 1e-2, (1, 1, 11, 11), 700),
        ("strip", "unknown", 1e-2, (1, 1, 11, 11), 700),
        ("strip", "reflect", 1e-2, (2, 2, 5, 5), 300),
        ("slab", "unknown", 1e-2, (1, 1, 9, 7, 7), 96),
        ("slab", "unknown", 1e-2, (2, 2, 5, 3, 3), 64),
        ("iterative", "zero", 1e-2, (4, 4, 3, 3), 256),
        ("iterative", "zero", 0.0, (1, 1, 9, 9), 700),
        ("direct", "reflect", 0.0, (2, 2, 5, 5), 128),
    ],
)
def test_estimates_are_near_what_is_taken(method, boundary, lam, shape, size):
    words = [sys.executable, "-c", MEASURE, method, boundary, str(lam), str(shape), str(size)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert 0.5 <= float(done.stdout) <= 2.2


@pytest.mark.parametrize(
    ("method", "boundary", "advice"),
    [
        ("fft", "circular", "use float32 or a larger max_memory or a smaller image"),
        ("strip", "unknown", "use float32 or a larger max_memory or a smaller image"),
        ("iterative", "zero", "use float32 or a larger max_memory or a smaller image"),
        ("direct", "zero", "use method auto or iterative or a larger max_memory or a smaller image"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_allocated(method, boundary, advice, monkeypatch):
    for factorization in ("torch.linalg.cholesky_ex", "torch.linalg.solve_ex", "torch.fft.rfft2"):
        monkeypatch.setattr(factorization, None)
    kernel, lam = random((2, 2, 3, 3)), 0.0 if method == "direct" else 0.1
    with pytest.raises(deconv_cli.TooLargeError, match=f"method {method} needs about .* 64×60 pixels .*{advice}"):
        deconv_cli.pseudo_inverse(
            kernel, input_size=(64, 60), boundary=boundary, lam=lam, method=method, max_memory=10_000
        )


def test_free_memory_bounds_what_is_built(monkeypatch):
    monkeypatch.setattr("deconv_cli.solvers.estimator.free_memory", lambda device: 10_000)
    with pytest.raises(deconv_cli.TooLargeError, match=r"more than the 9.766 KiB that are free"):
        deconv_cli.pseudo_inverse(random((3, 3)), input_size=(64, 60), boundary="circular")


def test_a_batch_that_does_not_fit_is_refused():
    inverse = deconv_cli.pseudo_inverse(
        random((2, 2, 3, 3)), input_size=(32, 32), boundary="circular", lam=0.1, max_memory=2_000_000
    )
    few = random((3, 2, 32, 32))
    assert inverse(few).shape == few.shape
    many = torch.zeros(1, dtype=torch.float64).expand(100, 2, 32, 32)
    for apply in (inverse, inverse.solve):
        with pytest.raises(deconv_cli.TooLargeError, match=r"for 100 images of 32×32 .* use .*fewer images at a time"):
            apply(many)


def test_max_memory_is_the_budget_of_the_direct_method():
    kernel, settings = random((2, 2, 9, 9)), {"input_size": (40, 40), "boundary": "reflect", "lam": 0.0}
    kernel[:, :, 4, 4] += 50 * torch.eye(2)
    assert deconv_cli.pseudo_inverse(kernel, **settings, max_memory=10**9).choice.method == "direct"
    choice = deconv_cli.pseudo_inverse(kernel, **settings, max_memory=12_000_000).choice
    assert choice.method != "direct"
    assert "the limit is 11.44 MiB" in choice.reason
    with pytest.raises(deconv_cli.UsageError, match="max_memory must be a positive whole number"):
        deconv_cli.pseudo_inverse(kernel, **settings, max_memory=0)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("8GiB", 8 * 2**30), ("500MB", 500 * 10**6), ("1.5 kib", 1536), ("123", 123), ("7b", 7), ("2TB", 2 * 10**12)],
)
def test_amounts_of_memory_are_read(text, n_bytes):
    assert parse_memory(text) == n_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1GB", "0", "1e9", "5 parsecs", "0.2b", "nan", "٣MB"])
def test_what_is_no_amount_of_memory_is_refused(text):
    with pytest.raises(deconv_cli.UsageError, match="must be like 8GiB"):
        parse_memory(text)


def test_a_kernel_as_large_as_the_picture_is_left_to_ffts_of_the_whole():
    kernel = random((1, 1, 160, 161), seed=0).abs()
    inverse = deconv_cli.pseudo_inverse(kernel, input_size=(160, 161), boundary="unknown", lam=1e-2)
    assert inverse.choice.method == "slab"
    assert inverse.cost.n_bytes() < 64 * 8 * 4 * 160 * 161
    with pytest.raises(deconv_cli.UsageError, match="extends too far"):
        deconv_cli.pseudo_inverse(kernel, input_size=(160, 161), boundary="unknown", lam=1e-2, method="strip")


BOUNDED = [case for case in ALL_CASES if case.size == (7, 6) and case.shape[2:] != (1, 1)]


def layer(n_channels):
    """Channels that are mixed a little, as in a trained layer."""
    taps = random((n_channels, n_channels, 5, 5), seed=3) / (20 * n_channels**0.5)
    taps[:, :, 2, 2] += torch.eye(n_channels, dtype=torch.float64)
    return taps


def blur(n_taps):
    line = torch.exp(-((torch.arange(n_taps) - n_taps // 2).double() ** 2) / (n_taps / 2))
    return torch.outer(line, line)[None, None] / line.sum() ** 2


@pytest.mark.parametrize("case", BOUNDED, ids=lambda case: case.name)
def test_the_bound_is_never_below_the_dense_condition(case):
    values = torch.linalg.svdvals(case.operator().as_matrix()).square()
    assert TikhonovProblem(case.operator(), 0.0).condition >= 0.99 * float(values[0] / values[-1])


@pytest.mark.parametrize("boundary", ["zero", "reflect", "symmetric", "replicate"])
def test_a_layer_that_is_well_conditioned_is_known_to_be(boundary):
    """By its Hermitian part, which is definite; a border might lose what the torus does not if it is not."""
    operator = Convolution(layer(2), (9, 8), boundary=boundary)
    values = torch.linalg.svdvals(operator.as_matrix()).square()
    assert values[0] / values[-1] <= TikhonovProblem(operator, 0.0).condition * 1.01 < 800
    shifted = operator.with_kernel(layer(2).roll(1, dims=3))
    assert TikhonovProblem(shifted, 0.0).condition == math.inf


@pytest.mark.parametrize(
    ("taps", "size", "boundary", "padding", "lam", "penalty", "expected"),
    [
        (blur(9), (256, 256), "circular", "valid", 1e-3, "gradient", "iterative"),
        (blur(9), (256, 256), "circular", "valid", 1e-5, "gradient", "iterative"),
        (blur(9), (96, 96), "circular", "full", 1e-3, "gradient", "iterative"),
        (blur(9), (96, 96), "circular", "valid", 1e-3, "identity", "strip"),
        (blur(9), (128, 128), "zero", "same", 1e-6, "identity", "strip"),
        (blur(9), (128, 128), "reflect", "same", 1e-3, "gradient", "strip"),
        (layer(3), (96, 96), "circular", "valid", 0.0, "identity", "strip"),
        (layer(3), (96, 96), "zero", "full", 0.0, "identity", "strip"),
        (layer(3), (96, 96), "reflect", "same", 1e-3, "identity", "strip"),
        (layer(3), (96, 96), "zero", "same", 0.0, "identity", "direct"),
        (layer(3), (96, 96), "reflect", "same", 0.0, "identity", "direct"),
        (layer(8), (64, 64), "reflect", "same", 0.0, "identity", "iterative"),
        (random((1, 1, 31, 31)), (128, 128), "reflect", "same", 0.0, "identity", "direct"),
        (layer(8), (400, 400), "zero", "same", 0.0, "identity", "iterative"),
        (random((8, 8, 3, 3)), (400, 400), "zero", "same", 0.0, "identity", "direct"),
    ],
)
def test_the_choice_was_within_half_of_the_fastest_where_that_was_measured(
    taps, size, boundary, padding, lam, penalty, expected
):
    operator = Convolution(taps, size, padding=padding, boundary=boundary)
    assert choose_method(TikhonovProblem(operator, lam, penalty=penalty), max_memory=2**34).method == expected
