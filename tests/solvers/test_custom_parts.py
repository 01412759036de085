"""Boundary rules, penalties and solvers of the user's own: solvers that take them are right, and the others say no."""

import pytest
import torch
from cases import dense_tikhonov, random
from custom_rules import CUSTOM_RULES, Antisymmetric, ThirdDifferences, registered

import deconv_cli
from deconv_cli.errors import UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.parts import SOLVERS
from deconv_cli.regularizers import find_penalty
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.inverse import Inverse
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.richardson_lucy import RichardsonLucyEstimator
from deconv_cli.solvers.solution import Solution, Status
from deconv_cli.solvers.solver import Choice, Cost, Solver

SHAPES = [(1, 1, 3, 3), (2, 2, 3, 4), (3, 2, 2, 3)]
SIZE = (8, 7)


def solve(shape, **settings):
    inverse = PseudoInverse(Kernel(random(shape), False), SIZE, ResolvedSettings(tolerance=1e-12, **settings))
    problem = inverse.problem
    y = random(problem.operator.output_shape, seed=3)
    solution = inverse.solve(y).raise_for_status()
    L = find_penalty(problem.penalty).operator(problem.operator.input_shape, periodic=False)
    expected = dense_tikhonov(problem.operator, y, problem.weight, L)
    return float((solution.value - expected).norm() / expected.norm())


PENALIZED = [(1e-2, "identity"), (1e-2, "gradient"), (1e-3, "laplacian")]


@pytest.mark.parametrize("rule", CUSTOM_RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", ["same", "valid", "full"])
@pytest.mark.parametrize(("lam", "penalty"), PENALIZED)
@pytest.mark.parametrize("method", ["auto", "iterative"])
def test_copies_with_factors_are_solved_exactly(rule, shape, padding, lam, penalty, method):
    with registered(rule):
        assert solve(shape, boundary=rule.name, padding=padding, lam=lam, penalty=penalty, method=method) <= 1e-9


@pytest.mark.parametrize("rule", CUSTOM_RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", ["same", "valid", "full"])
def test_pseudo_inverses_under_copies_with_factors_are_exact(rule, shape, padding):
    with registered(rule):
        for method in ("auto", "direct", "iterative"):
            is_covered = method != "direct" or (shape[0] == shape[1] and padding == "same")
            settings = {"boundary": rule.name, "padding": padding, "lam": 0.0, "method": method}
            if is_covered:
                assert solve(shape, **settings) <= 1e-7
                continue
            with pytest.raises(UsageError, match="method direct is for λ = 0 and an output of the shape"):
                solve(shape, **settings)


@pytest.mark.parametrize("rule", CUSTOM_RULES, ids=lambda rule: rule.name)
def test_solvers_that_do_not_cover_factors_refuse_them(rule):
    with registered(rule):
        for method in ("strip", "fft"):
            with pytest.raises(UsageError, match=f"method {method} .*; use method auto"):
                solve((1, 1, 3, 3), boundary=rule.name, lam=1e-2, method=method)
        with pytest.raises(UsageError, match=f"boundary {rule.name} multiplies its copies by factors"):
            RichardsonLucyEstimator(
                Kernel.from_tensor(random((3, 3)).abs()),
                SIZE,
                ResolvedSettings(boundary=rule.name, method="richardson-lucy", lam=0.0),
            )


@pytest.mark.parametrize("method", ["auto", "strip", "iterative"])
@pytest.mark.parametrize("boundary", ["zero", "unknown", "replicate", "reflect"])
def test_a_penalty_of_the_users_own_is_solved_by_every_solver(method, boundary):
    with registered(ThirdDifferences()):
        error = solve((2, 2, 3, 4), boundary=boundary, lam=1e-3, penalty="third", method=method)
    assert error <= 1e-8


@pytest.mark.parametrize("penalty", ["gradient", "laplacian"])
def test_a_zero_mean_kernel_and_a_penalty_that_misses_constants_meet_a_border_that_changes_them(penalty):
    """Under an antisymmetric border a constant image is seen, though on the torus it is not."""
    taps = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64)[None, None]
    with registered(Antisymmetric()):
        settings = ResolvedSettings(boundary="antisymmetric", lam=1e-2, penalty=penalty, tolerance=1e-12)
        inverse = PseudoInverse(Kernel(taps, False), SIZE, settings)
        truth = torch.ones(1, *SIZE, dtype=torch.float64)
        y = inverse.operator(truth)
        found = inverse.solve(y).raise_for_status().value
    assert y.abs().max() > 0.5
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-8)


TINY = (6, 5)


class DenseInverse(Inverse):
    def __init__(self, problem):
        self.problem = problem
        gram = problem.operator.gram.as_matrix() + problem.weight * problem.penalty_operator.gram.as_matrix()
        self._inverse = torch.linalg.inv(gram)

    def solve(self, y, progress=None):
        x = self.solve_normal(self.problem.operator.adjoint(y))
        return Solution(x, Status.CLOSED_FORM, 0, float(self.problem.certificate(x, y).max()))

    def solve_normal(self, g):
        return (g.flatten(-3) @ self._inverse).reshape(g.shape)


class DenseSolver(Solver):
    def __init__(self, n_operations=0.0, n_bytes=1000):
        self._cost = Cost(n_operations, n_bytes, 0)

    def covers(self, problem):
        return None if problem.lam > 0 else "needs λ > 0"

    def cost(self, problem):
        return self._cost

    def reason(self, problem):
        return "the image is tiny"

    def build(self, problem, rule):
        return DenseInverse(problem)


@pytest.fixture
def register():
    added = []

    def add(registry, name, part):
        registry.register(name, part)
        added.append((registry, name))

    yield add
    for registry, name in added:
        registry.unregister(name)


def inverse_of(lam=1e-2, **settings):
    wanted = ResolvedSettings(boundary="reflect", lam=lam, **settings)
    return PseudoInverse(Kernel(random((2, 2, 3, 3)), False), TINY, wanted)


def test_auto_takes_it_at_its_stated_cost(register):
    register(SOLVERS, "tiny", DenseSolver())
    assert inverse_of().choice == Choice("tiny", "the image is tiny")
    assert inverse_of(lam=0.0).choice.method == "dense"
    register(SOLVERS, "costly", DenseSolver(n_operations=1e30))
    assert inverse_of().choice.method == "tiny"


def test_auto_leaves_out_what_does_not_fit_the_memory(register):
    register(SOLVERS, "tiny", DenseSolver(n_bytes=10**15))
    choice = inverse_of().choice
    assert choice.method == "dense"
    assert "method tiny would need 909.5 TiB" in choice.reason
    with pytest.raises(deconv_cli.TooLargeError, match="method tiny needs about"):
        inverse_of(method="tiny")


def test_derivatives_follow_from_its_normal_equations(register):
    register(SOLVERS, "tiny", DenseSolver())
    y = random((2, *TINY), seed=1).requires_grad_()
    assert torch.autograd.gradcheck(inverse_of(method="tiny"), (y,))
