"""Derivatives of every inverse in the data and in the kernel, against finite differences."""

import itertools

import pytest
import torch
from cases import mild_kernel, products, random

import deconv_cli
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.parts import BOUNDARIES
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.pseudo_inverse import PseudoInverse

SIZE = (5, 4)
KERNEL_SHAPES = ((1, 1, 3, 3), (2, 2, 3, 2), (3, 2, 2, 3), (2, 3, 3, 2))
METHODS = ("fft", "direct", "strip", "iterative")
LAPLACIAN = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64)

UNREGULARIZED = [
    (boundary, padding, shape, 0.0, "identity")
    for boundary, padding, shape in itertools.product(BOUNDARIES, ("same", "valid", "full"), KERNEL_SHAPES)
    if padding != "valid" or shape[0] < shape[1]
]
REGULARIZED = [
    (boundary, padding, shape, 0.03, penalty)
    for i, (boundary, shape) in enumerate(itertools.product(BOUNDARIES, KERNEL_SHAPES))
    for padding, penalty in (
        ("same", "identity"),
        ("valid", "gradient") if (i + i // 4) % 2 else ("same", "laplacian"),
    )
]


def has_clear_rank(matrix):
    values = torch.linalg.svdvals(matrix)
    return values[0] <= 1e3 * values[values > 1e-13 * values[0]][-1]


def inverse_of(taps, boundary, padding, method, lam, penalty, size=SIZE, **settings):
    wanted = ResolvedSettings(
        padding=padding, boundary=boundary, lam=lam, penalty=penalty, method=method, tolerance=1e-12, **settings
    )
    try:
        return PseudoInverse(Kernel(taps, False), size, wanted)
    except deconv_cli.UsageError:
        return None


@pytest.mark.exhaustive
@pytest.mark.parametrize(("boundary", "padding", "shape", "lam", "penalty"), UNREGULARIZED + REGULARIZED)
def test_every_inverse_is_differentiable_in_data_and_kernel(boundary, padding, shape, lam, penalty):
    taps = mild_kernel(shape, 0.2).requires_grad_()
    n_methods = 0
    for method in METHODS:
        inverse = inverse_of(taps, boundary, padding, method, lam, penalty)
        if inverse is None or (lam == 0 and not has_clear_rank(inverse.problem.operator.as_matrix())):
            continue
        n_methods += 1
        y = random((2, *inverse.problem.operator.output_shape), seed=1).requires_grad_()

        def restore(y, taps, method=method):
            return inverse_of(taps, boundary, padding, method, lam, penalty)(y)

        assert torch.autograd.gradcheck(restore, (y, taps), fast_mode=True), method
    assert n_methods >= (lam > 0 and (shape[0] >= shape[1] or penalty == "identity"))


@pytest.mark.parametrize(**products(lam=[0.0, 0.03], boundary=list(BOUNDARIES)))
def test_normal_equations_are_solved_for_any_right_hand_side(boundary, lam):
    for shape, padding in itertools.product(KERNEL_SHAPES, ("same", "full")):
        for method in METHODS:
            inverse = inverse_of(mild_kernel(shape, 0.2), boundary, padding, method, lam, "identity", size=(7, 6))
            if inverse is None:
                continue
            matrix = inverse.problem.operator.as_matrix()
            if lam == 0 and not has_clear_rank(matrix):
                continue
            pseudo_inverse = torch.linalg.pinv(matrix)
            normal = matrix.T @ matrix + inverse.problem.weight * torch.eye(matrix.shape[1], dtype=matrix.dtype)
            expected = torch.linalg.inv(normal) if lam > 0 else pseudo_inverse @ pseudo_inverse.T
            g = random((2, *inverse.problem.operator.input_shape), seed=5)
            w, image = inverse._inverse.solve_normal(g), inverse._inverse.solve_transposed(g)
            wanted = g.flatten(1) @ expected
            assert (w.flatten(1) - wanted).norm() <= 1e-9 * wanted.norm(), (method, shape)
            assert (image.flatten(1) - wanted @ matrix.T).norm() <= 1e-9 * (wanted @ matrix.T).norm(), (method, shape)


@pytest.mark.parametrize(("boundary", "lam"), [("zero", 0.0), ("circular", 0.1), ("unknown", 0.1)])
def test_invert_is_differentiable_in_data_shared_kernel_and_bias(boundary, lam):
    """Every entry of the Jacobian; above, a random projection of it."""
    taps = mild_kernel((1, 1, 3, 2), 0.2)[0, 0].requires_grad_()
    y, bias = random((2, 2, 4, 3)).requires_grad_(), random((2,), seed=1).requires_grad_()

    def restore(y, taps, bias):
        return deconv_cli.invert(y, taps, bias=bias, boundary=boundary, lam=lam, tolerance=1e-12).image

    assert torch.autograd.gradcheck(restore, (y, taps, bias))
    assert torch.autograd.gradcheck(lambda y: restore(y, taps.detach(), None), (y[0].detach().requires_grad_(),))


def test_without_a_request_there_is_no_graph_and_nothing_changes():
    taps, y = mild_kernel((2, 2, 3, 3), 0.2), random((2, 2, 8, 9))
    for boundary in ("circular", "zero", "unknown"):
        plain = deconv_cli.pseudo_inverse(taps, input_size=(8, 9), boundary=boundary, lam=0.1)
        assert plain(y).grad_fn is None
        asking = deconv_cli.pseudo_inverse(taps.clone().requires_grad_(), input_size=(8, 9), boundary=boundary, lam=0.1)
        with torch.no_grad():
            assert asking(y.clone().requires_grad_()).grad_fn is None
        attached = asking(y.clone().requires_grad_())
        assert attached.grad_fn is not None
        assert torch.equal(attached, plain(y))
        assert plain.solve(y).value.grad_fn is None


def test_a_second_derivative_is_refused():
    y = random((1, 8, 9)).requires_grad_()
    inverse = deconv_cli.pseudo_inverse(mild_kernel((1, 1, 3, 3), 0.2), input_size=(8, 9), lam=0.1)
    (gradient,) = torch.autograd.grad(inverse(y).square().sum(), y, create_graph=True)
    with pytest.raises(deconv_cli.UsageError, match="cannot be differentiated again"):
        torch.autograd.grad(gradient.square().sum(), y)
    taps = mild_kernel((1, 1, 3, 3), 0.2).requires_grad_()
    restored = deconv_cli.pseudo_inverse(taps, input_size=(8, 9), lam=0.1)(y.detach())
    (gradient,) = torch.autograd.grad(restored.sum(), taps, create_graph=True)
    with pytest.raises(deconv_cli.UsageError, match="cannot be differentiated again"):
        gradient.square().sum().backward()


@pytest.mark.parametrize(
    ("method", "boundary", "lam"),
    [("iterative", "zero", 1e-4), ("iterative", "zero", 0.0), ("strip", "unknown", 1e-4)],
)
def test_a_backward_that_does_not_converge_warns(method, boundary, lam):
    """Zero data are restored at once; what is asked of the backward is not."""
    y = torch.zeros(1, 12, 13, dtype=torch.float64, requires_grad=True)
    inverse = deconv_cli.pseudo_inverse(
        random((3, 3)), input_size=(12, 13), boundary=boundary, lam=lam, method=method, max_iterations=1
    )
    restored = inverse(y)
    with pytest.warns(RuntimeWarning, match="iterations ran out"):
        restored.backward(random(restored.shape))


def test_an_inverse_is_that_of_the_taps_when_it_was_built():
    layer = torch.nn.Conv2d(2, 2, 3, padding=1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(mild_kernel((2, 2, 3, 3), 0.2))
    for boundary in ("zero", "circular"):
        inverse = deconv_cli.pseudo_inverse(layer.weight, input_size=(8, 9), boundary=boundary, lam=0.1)
        y = random((2, 8, 9))
        before = inverse(y)
        (expected,) = torch.autograd.grad(before.sum(), layer.weight)
        with torch.no_grad():
            layer.weight.mul_(3)
        after = inverse(y)
        (gradient,) = torch.autograd.grad(after.sum(), layer.weight)
        assert torch.equal(after, before)
        assert torch.equal(gradient, expected)
        with torch.no_grad():
            layer.weight.div_(3)


@pytest.mark.exhaustive
@pytest.mark.parametrize("boundary", ["circular", "reflect", "symmetric", "replicate", "unknown"])
@pytest.mark.parametrize("method", ["fft", "strip", "iterative"])
def test_constants_that_nothing_determines_pass_no_gradient(boundary, method):
    """A kernel of zero sum under a gradient penalty: constants are seen by neither, and the least estimate has none."""
    y = random((1, *SIZE)).requires_grad_()
    settings = {"boundary": boundary, "lam": 0.01, "penalty": "gradient", "method": method, "tolerance": 1e-12}
    try:
        inverse = deconv_cli.pseudo_inverse(LAPLACIAN, input_size=SIZE, **settings)
    except deconv_cli.UsageError:
        return
    solution = inverse.solve(y)
    assert solution.value.mean(dim=(-2, -1)).abs().max() <= 1e-10
    assert torch.autograd.gradcheck(inverse, (y,))
