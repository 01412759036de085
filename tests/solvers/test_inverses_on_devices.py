"""Every inverse and estimate is computed on the device of its kernel: proved without one, compared where one is."""

import itertools
import warnings

import pytest
import torch
from cases import random
from devices import DOUBLE, cases, check_on_cuda, check_without_numbers, needs_cuda

from deconv_cli.diagnostics.noise_level import estimate_gain, estimate_noise
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators.circulant import torus_symbol
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.geometry import Geometry
from deconv_cli.operators.spectrum import kernel_spectrum
from deconv_cli.parts import BOUNDARIES, PENALTIES
from deconv_cli.regularizers import find_penalty
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.closed_form import MIRRORED, CircularInverse
from deconv_cli.solvers.direct import DenseBorderSystem, DirectInverse
from deconv_cli.solvers.fourier import full_rank_inverse, torus_blocks
from deconv_cli.solvers.iterative import ITERATIVE as ITERATIVE_SOLVER
from deconv_cli.solvers.iterative import IterativeInverse, TorusPreconditioner
from deconv_cli.solvers.nonnegative import NonnegativeEstimator
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.pseudo_inverse import PseudoInverse, attach_gradient
from deconv_cli.solvers.richardson_lucy import RichardsonLucyEstimator
from deconv_cli.solvers.slab import SlabSolver
from deconv_cli.solvers.solution import StoppingRule
from deconv_cli.solvers.square_border import SquareBorderSystem
from deconv_cli.solvers.strip import StripSolver
from deconv_cli.solvers.total_variation import TotalVariationEstimator

SIZE = (6, 7)
STACK = (3, 4, 3)
LAMBDA = 1e-2
ONE_ITERATION, TO_THE_END = StoppingRule(1e-10, 1), StoppingRule(1e-3, 100)

SQUARE, TALL, WIDE = random((2, 2, 3, 3)), random((3, 2, 3, 3)), random((2, 3, 3, 3))
SKEW = random((1, 1, 3, 3), seed=4)
BLUR = random((1, 1, 3, 3)).abs()
# Of a symbol that is zero at the zero frequency, or of less than full rank at every one.
ZERO_MEAN = torch.tensor([[[[0.0, 1.0, 0.0], [2.0, -8.0, 1.0], [0.0, 3.0, 1.0]]]], dtype=torch.float64)
TWINS = SQUARE[:, :1].expand(2, 2, 3, 3).contiguous()
MANY_TWINS = random((5, 1, 3, 3)).expand(5, 5, 3, 3).contiguous()


def problem_of(taps, boundary, lam=0.0, penalty="identity", padding="same"):
    operator = Convolution.of_geometry(taps.detach(), Geometry.of_image(SIZE, tuple(taps.shape[2:]), padding), boundary)
    sigma_max = kernel_spectrum(taps, SIZE).sigma_max if lam > 0 else 1.0
    return TikhonovProblem(operator, lam, sigma_max, penalty)


def use(inverse, *, in_all_ways=True):
    """Apply an inverse; one or two iterations are not expected to converge."""
    operator = inverse.problem.operator
    ones = operator.kernel.new_ones
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        value = inverse.solve(ones(2, *operator.output_shape)).value
        if not in_all_ways:
            return [value]
        return value, inverse.solve_normal(ones(operator.input_shape)), inverse.solve_transposed(value)


def solve_torus(taps, weight, covers_inputs):
    symbol, penalty = torus_symbol(taps, SIZE), find_penalty("gradient").symbol(SIZE, taps.dtype, taps.device)
    blocks = torus_blocks(symbol, weight, penalty + 0.1, covers_inputs=covers_inputs)
    return blocks.estimate, blocks.outputs, blocks.inputs, full_rank_inverse(symbol)


def circular(taps, lam, penalty):
    problem = problem_of(taps, "circular", lam, penalty)
    return use(CircularInverse(problem))


def mirrored(taps, lam, penalty):
    for axis in (2, 3):
        taps = taps + taps.flip(axis)
    problem = problem_of(taps, "symmetric", lam, penalty)
    assert MIRRORED.covers(problem) is None
    return use(MIRRORED.build(problem, ONE_ITERATION))


def strip(taps, boundary, lam, penalty, rule=ONE_ITERATION, *, in_all_ways=False):
    padding = "valid" if lam == 0 and boundary == "circular" else "same"
    return use(StripSolver().build(problem_of(taps, boundary, lam, penalty, padding), rule), in_all_ways=in_all_ways)


def slab(taps, boundary, lam, penalty, rule=ONE_ITERATION):
    """The slabs of a stack, for an unknown border or for outputs of the whole overlap."""
    padding = "full" if boundary == "zero" else "same"
    size = STACK[: taps.ndim - 2]
    problem = TikhonovProblem(Convolution(taps, size, padding=padding, boundary=boundary), lam, penalty=penalty)
    return use(SlabSolver().build(problem, rule), in_all_ways=True)


def strip_in_all_ways(*arguments):
    return strip(*arguments, in_all_ways=True)


def direct(taps, boundary):
    inverse = DirectInverse(problem_of(taps, boundary, 0.0, "identity"), ONE_ITERATION)
    assert isinstance(inverse._system, SquareBorderSystem)
    return use(inverse, in_all_ways=True)


def direct_dense(taps, boundary):
    system = DenseBorderSystem(problem_of(taps, boundary, 0.0, "identity").operator)
    y = taps.new_ones(2, len(taps), *SIZE)
    return system.estimate(y), system.estimate_transposed(y)


def iterative(taps, boundary, lam, penalty, preconditioner):
    inverse = ITERATIVE_SOLVER.build(problem_of(taps, boundary, lam, penalty), ONE_ITERATION)
    assert isinstance(inverse, IterativeInverse)
    assert isinstance(inverse._preconditioner, preconditioner)
    return use(inverse)


def derive(taps, build, boundary, lam, penalty="identity"):
    problem = problem_of(taps, boundary, lam, penalty)
    inverse = build(problem)
    y = taps.new_ones(2, *problem.operator.output_shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        value = inverse.solve(y).value
        taps, y = taps.detach().requires_grad_(), y.requires_grad_()
        value = attach_gradient(value, y, taps, inverse, kernel_spectrum(taps.detach(), SIZE))
        return torch.autograd.grad(value.sum(), (y, taps))


def strip_inverse(problem):
    return StripSolver().build(problem, ONE_ITERATION)


def direct_inverse(problem):
    return DirectInverse(problem, ONE_ITERATION)


BLOCKS = [
    pytest.param(solve_torus, taps, weight, taps.shape[0] >= taps.shape[1], id=f"torus-{name}-{weight:g}")
    for (name, taps), weight in itertools.product(
        {"square": SQUARE, "tall": TALL, "wide": WIDE, "blocks": random((6, 5, 3, 3))}.items(), (0.0, LAMBDA)
    )
]
CIRCULAR = [
    pytest.param(circular, taps, lam, penalty, id=f"circular-{name}-{lam:g}-{penalty}")
    for (name, taps), (lam, penalty) in itertools.product(
        {
            "blur": BLUR,
            "zero-mean": ZERO_MEAN,
            "small": TALL,
            "small-singular": TWINS,
            "wide": random((5, 6, 3, 3)),
            "singular": MANY_TWINS,
        }.items(),
        [(0.0, "identity"), (LAMBDA, "identity"), (LAMBDA, "laplacian")],
    )
]
CIRCULAR += [
    pytest.param(mirrored, taps, lam, penalty, id=f"mirrored-{len(taps)}-{lam:g}")
    for taps, (lam, penalty) in itertools.product((BLUR, TALL), [(0.0, "identity"), (LAMBDA, "gradient")])
]
STRIP = [
    pytest.param(strip_in_all_ways, SKEW, "reflect", LAMBDA, "identity", id="strip-all-ways"),
    pytest.param(strip_in_all_ways, TALL[:2, :1], "zero", 0.0, "identity", id="strip-all-ways-0"),
    pytest.param(strip, SKEW, "zero", 1e-6, "identity", id="strip-tiny-lambda"),
    *(
        pytest.param(strip, SKEW, boundary, LAMBDA, penalty, id=f"strip-{boundary}-{penalty}")
        for boundary, penalty in zip(BOUNDARIES, itertools.cycle(PENALTIES), strict=False)
        if boundary != "circular"
    ),
]
TO_THE_END_STRIP = [
    pytest.param(strip, SKEW, "unknown", LAMBDA, "identity", TO_THE_END, id="strip-to-the-end-cg"),
    pytest.param(strip, SKEW, "reflect", LAMBDA, "identity", TO_THE_END, id="strip-to-the-end-gmres"),
]
SLAB = [
    pytest.param(slab, random((2, 2, 3, 2, 2)), "unknown", LAMBDA, "identity", id="slab"),
    pytest.param(slab, random((2, 1, 3, 2, 2)), "unknown", LAMBDA, "gradient", id="slab-gradient"),
    pytest.param(slab, random((1, 1, 3, 2, 2)), "unknown", 0.0, "identity", id="slab-0"),
    pytest.param(slab, random((2, 1, 3, 2, 2)), "zero", LAMBDA, "identity", id="slab-full"),
]
DIRECT = [
    pytest.param(direct, SQUARE, "reflect", id="direct-reflect"),
    pytest.param(direct_dense, SQUARE, "symmetric", id="direct-dense-symmetric"),
    pytest.param(direct_dense, SQUARE, "zero", id="direct-dense-zero"),
]
ITERATIVE = [
    pytest.param(iterative, SQUARE, "reflect", LAMBDA, "gradient", TorusPreconditioner, id="iterative"),
    pytest.param(iterative, WIDE, "reflect", 0.0, "identity", type(None), id="iterative-plain"),
]
DERIVED = [
    pytest.param(derive, TALL, CircularInverse, "circular", 0.0, id="derivative-circular-0"),
    pytest.param(derive, TALL, CircularInverse, "circular", LAMBDA, id="derivative-circular"),
    pytest.param(derive, TALL, strip_inverse, "reflect", LAMBDA, "gradient", id="derivative-strip"),
]
DIRECTLY_DERIVED = pytest.param(derive, SQUARE, direct_inverse, "zero", 0.0, id="derivative-direct")


EXHAUSTIVE = pytest.mark.exhaustive
FRAME = (9, 8)
MIXING = random((2, 2, 3, 3)).abs()
DATA = random((2, 2, *FRAME), seed=1)
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
    return NonnegativeEstimator(PseudoInverse(Kernel(taps, shared=False), FRAME, settings)).solve(y).value


def total_variation(taps, y, boundary, weight):
    settings = ResolvedSettings(boundary=boundary, tolerance=3e-2, max_iterations=11, max_memory=MEMORY)
    estimator = TotalVariationEstimator(Kernel(taps, shared=False), FRAME, settings, weight=weight, noise=0.5)
    return estimator.solve(y).value


def richardson_lucy(taps, y, boundary, gain):
    settings = ResolvedSettings(boundary=boundary, max_iterations=12, max_memory=MEMORY)
    estimator = RichardsonLucyEstimator(Kernel(taps, shared=False), FRAME, settings, gain=gain)
    return estimator.solve(y).value


def noise(y):
    gain = estimate_gain(y)
    return y * estimate_noise(y) * (1.0 if gain is None else gain)


ESTIMATES = [
    *(
        pytest.param(
            nonnegative, MIXING, DATA, boundary, penalty, id=f"nonnegative-{boundary}-{penalty}", marks=EXHAUSTIVE
        )
        for boundary, penalty in [
            ("circular", "gradient"),
            ("reflect", "laplacian"),
            ("unknown", "identity"),
        ]
    ),
    *(
        pytest.param(total_variation, MIXING, DATA, boundary, weight, id=f"tv-{boundary}-{weight}", marks=EXHAUSTIVE)
        for boundary, weight in [("circular", None), ("zero", 0.1), ("unknown", 0.1)]
    ),
    *(
        pytest.param(
            richardson_lucy, MIXING, COUNTS, boundary, gain, id=f"richardson-lucy-{boundary}-{gain}", marks=EXHAUSTIVE
        )
        for boundary, gain in [("circular", None), ("zero", 1.0), ("unknown", None)]
    ),
    pytest.param(noise, random((1, 60, 60)).abs() + 1, id="noise", marks=EXHAUSTIVE),
]


@cases(*BLOCKS, *CIRCULAR, *STRIP, *SLAB, *DIRECT, *ITERATIVE, *ESTIMATES)
def test_nothing_leaves_the_device(case):
    check_without_numbers(*case)


@cases(*TO_THE_END_STRIP, *DERIVED, DIRECTLY_DERIVED)
def test_nothing_leaves_a_device_without_numbers(case):
    check_without_numbers(*case, device="meta")


@cases(*BLOCKS, *CIRCULAR, *STRIP[:2], *SLAB[:1], *ITERATIVE, *ESTIMATES)
def test_nothing_needs_double_precision_where_there_is_none(case):
    narrow = [value.float() if isinstance(value, torch.Tensor) else value for value in case]
    check_without_numbers(*narrow, device="mps", barred=DOUBLE)


@needs_cuda
@cases(*BLOCKS, *CIRCULAR, *TO_THE_END_STRIP, *SLAB, *DIRECT, *DERIVED, DIRECTLY_DERIVED, *ESTIMATES)
def test_cuda_agrees_with_the_cpu(case):
    check_on_cuda(*case, tolerance=1e-4 if case[0] in (nonnegative, total_variation, richardson_lucy, noise) else 1e-6)
