"""Images that go around a torus along some axes and end along others, against dense linear algebra."""

import pytest
import torch
from cases import random

from deconv_cli.errors import UsageError
from deconv_cli.operators.boundary_rules import CIRCULAR, as_rule, wrap
from deconv_cli.operators.convolution import Convolution
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.solution import StoppingRule
from deconv_cli.solvers.solver import build_inverse, choose_method

RULE = StoppingRule(tolerance=1e-10, max_iterations=2000)
MODES = {"zero": "constant", "reflect": "reflect", "replicate": "replicate"}
CASES = [
    ("unknown", (False, True), "gradient", "slab"),
    ("unknown", (True, False), "laplacian", "slab"),
    ("unknown", (False, True, False), "gradient", "slab"),
    ("unknown", (True, False, True), "identity", "slab"),
    ("reflect", (True, False), "gradient", "iterative"),
    ("zero", (False, True), "identity", "iterative"),
    ("replicate", (True, True, False), "gradient", "iterative"),
]


def blur(boundary, wraps):
    """A kernel that is not symmetric, on images that go around along some axes, where only ones ahead are looked at."""
    n_axes = len(wraps)
    taps = random((1, 1, *(5, 3, 3)[:n_axes]), seed=1).abs()
    # The kernel reaches ahead alone on the torus, and to either side else, where the frame is cut on one side.
    sides = [(0, k - 1) if w else (k // 2, 0) for k, w in zip(taps.shape[2:], wraps, strict=True)]
    before, after = zip(*sides, strict=True)
    size = (12, 10, 8)[:n_axes]
    padding = tuple(zip(before, after, strict=True))
    return Convolution(taps / taps.sum(), size, padding=padding, boundary=wrap(as_rule(boundary), wraps))


@pytest.mark.parametrize("boundary", MODES)
def test_what_lies_outside_differs_from_axis_to_axis(boundary):
    operator, x = blur(boundary, (False, True)), random((1, 12, 10))
    pads = operator.geometry.pads
    ended = torch.nn.functional.pad(x[None], (0, 0, pads.before[0], pads.after[0]), mode=MODES[boundary])
    around = torch.nn.functional.pad(ended, (pads.before[1], pads.after[1], 0, 0), mode="circular")
    assert torch.allclose(operator.forward(x), torch.nn.functional.conv2d(around, operator.kernel)[0])


@pytest.mark.parametrize(("boundary", "wraps", "penalty", "method"), CASES)
def test_they_are_restored_as_by_dense_algebra(boundary, wraps, penalty, method):
    operator = blur(boundary, wraps)
    problem = TikhonovProblem(operator, 0.02, None, penalty)
    inverse, _ = build_inverse(problem, RULE, choose_method(problem, method))
    matrix, differences = operator.as_matrix(), problem.penalty_operator.as_matrix()
    y = random(operator.output_shape, seed=2)
    gram = matrix.T @ matrix + problem.weight * differences.T @ differences
    expected = torch.linalg.solve(gram, matrix.T @ y.flatten())
    found = inverse.solve(y)
    assert found.status.is_success
    assert torch.allclose(found.value.flatten(), expected, atol=1e-7 * float(expected.abs().max()))


def test_differences_reach_around_the_same_axes():
    operator = blur("unknown", (True, False))
    x = random(operator.input_shape)
    down, across = TikhonovProblem(operator, 0.1, None, "gradient").penalty_operator.forward(x)
    assert torch.equal(down, x.roll(-1, 1) - x)
    assert torch.equal(across[..., :-1], x.diff(dim=2))
    assert not across[..., -1].any()


def test_a_method_for_images_that_end_refuses_them():
    problem = TikhonovProblem(blur("unknown", (True, False)), 0.02, None, "gradient")
    with pytest.raises(UsageError, match="strip inverts images that repeat along all axes or along none"):
        choose_method(problem, "strip")


def test_around_all_axes_or_none_is_a_rule_of_one_name():
    rule = as_rule("reflect")
    assert wrap(rule, (True, True)) is CIRCULAR
    assert wrap(rule, (False, False)) is wrap(rule, ()) is rule
    with pytest.raises(UsageError, match="already"):
        wrap(wrap(rule, (True, False)), (True, False))
