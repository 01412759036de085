"""A solver and a prior of a caller's own: one class and one line each, and they take part in everything."""

import pytest
import torch
from cases import random

import deconv_cli
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.parts import SOLVERS
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.inverse import Inverse
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.solution import Solution, Status
from deconv_cli.solvers.solver import Choice, Cost, Solver

SIZE = (6, 5)


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
    return PseudoInverse(Kernel(random((2, 2, 3, 3)), False), SIZE, wanted)


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
    y = random((2, *SIZE), seed=1).requires_grad_()
    assert torch.autograd.gradcheck(inverse_of(method="tiny"), (y,))
