"""Every inverse against the dense matrix: `torch.linalg.pinv` and the normal equations are the judge."""

import pytest
import torch
from cases import ALL_CASES, Case, dense_tikhonov, named, random

import deconv_cli
from deconv_cli.errors import ShapeError, UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.parts import PENALTIES
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.fourier import default_rcond
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.solution import Status

SMALL = [case for case in ALL_CASES if case.size == (7, 6)]


def build(case: Case, **settings) -> PseudoInverse:
    # Never shared, so that the channels are those of the dense matrix.
    settings = ResolvedSettings.of(padding=case.padding, boundary=case.boundary, **settings)
    return PseudoInverse(Kernel(case.kernel(), False), case.size, settings)


def dense_solution(inverse: PseudoInverse, y):
    problem = inverse.problem
    weight = problem.lam * inverse.spectrum.sigma_max**2
    return dense_tikhonov(problem.operator, y, weight, problem.penalty_operator if weight else None)


def buildable(case: Case, **settings) -> PseudoInverse | None:
    try:
        return build(case, **settings)
    except UsageError:
        return None


METHODS = ["auto", "fft", "strip", "direct", "dense", "iterative"]


@pytest.mark.parametrize(**named(SMALL))
@pytest.mark.parametrize(("lam", "penalty"), [(1e-2, "identity"), (1e-2, "gradient"), (1e-3, "laplacian")])
def test_regularized_inverses_equal_the_dense_one(case, lam, penalty):
    n_methods = 0
    for method in METHODS:
        inverse = buildable(case, lam=lam, penalty=penalty, tolerance=1e-12, method=method)
        if inverse is None:
            continue
        n_methods += 1
        y = random(inverse.problem.operator.output_shape, seed=3)
        solution = inverse.solve(y).raise_for_status()
        expected = dense_solution(inverse, y)
        assert (solution.value - expected).norm() <= 1e-9 * expected.norm(), method
    if case.shape[0] >= case.shape[1] or penalty == "identity":
        assert n_methods >= 3
    else:
        assert n_methods == 2 * (case.boundary == "circular" and case.geometry().output_size == case.size)


@pytest.mark.parametrize(**named(SMALL))
def test_pseudo_inverses_equal_the_dense_one(case):
    values = torch.linalg.svdvals(case.operator().as_matrix())
    values = values[values > 1e-13 * values[0]]
    if values[0] / values[-1] > 1e5:
        return  # no clear rank: the dense judge cannot tell either
    for method in METHODS:
        inverse = buildable(case, tolerance=1e-12, max_iterations=5000, method=method)
        if inverse is None or (method == "iterative" and values[0] / values[-1] > 1e4):
            continue
        y = random(inverse.problem.operator.output_shape, seed=3)
        expected = dense_solution(inverse, y)
        bound = 1e-7 if inverse.choice.method == "iterative" else 1e-9
        assert (inverse.solve(y).value - expected).norm() <= bound * expected.norm(), method


@pytest.mark.parametrize("channels", [(1, 1), (3, 2), (2, 3), (5, 5), (6, 4)])
@pytest.mark.parametrize("penalty", list(PENALTIES))
@pytest.mark.parametrize("lam", [0.0, 1e-3])
def test_circular_closed_form(channels, penalty, lam):
    case = Case("circular", "same", (*channels, 3, 4), (6, 7))
    inverse = build(case, lam=lam, penalty=penalty)
    y = random((2, *inverse.problem.operator.output_shape), seed=3)
    solution = inverse.solve(y)
    assert solution.status is Status.CLOSED_FORM
    assert solution.certificate <= 1e-10
    for estimate, data in zip(solution.value, y, strict=True):
        expected = dense_solution(inverse, data)
        assert (estimate - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.parametrize("size", [(5,), (3, 4), (2, 3, 2)])
@pytest.mark.parametrize(("channels", "lam"), [((3, 4), 0.0), ((4, 3), 0.0), ((3, 4), 1e-2), ((2, 2), 1e-9)])
@pytest.mark.parametrize("boundary", ["circular", "unknown", "reflect"])
def test_layers_of_one_tap_are_undone_pixel_by_pixel(boundary, channels, lam, size):
    taps = random((*channels, *[1] * len(size)))
    if lam == 0:
        taps[:, 0] = taps[:, 1]  # of less than full rank
    inverse = PseudoInverse(Kernel(taps, False), size, ResolvedSettings(boundary=boundary, lam=lam))
    assert (inverse.choice.method, "undoes each of them" in inverse.choice.reason) == ("dense", True)
    rank = int(torch.linalg.matrix_rank(taps.flatten(1)))
    assert inverse.rank == (None if lam > 0 else rank * random(size).numel())
    y = random((2, *inverse.problem.operator.output_shape), seed=3)
    solution = inverse.solve(y)
    assert solution.certificate <= 1e-12
    for estimate, data in zip(solution.value, y, strict=True):
        expected = dense_solution(inverse, data)
        assert (estimate - expected).norm() <= 1e-9 * expected.norm()
    A, g = inverse.problem.operator.as_matrix(), random(inverse.problem.operator.input_shape, seed=4)
    gram = A.T @ A + inverse.problem.weight * torch.eye(A.shape[1], dtype=A.dtype)
    normal = torch.linalg.pinv(gram, rtol=1e-12) @ g.flatten()
    for found, wanted in (
        (inverse._inverse.solve_normal(g), normal),
        (inverse._inverse.solve_transposed(g), A @ normal),
    ):
        assert (found.flatten() - wanted).norm() <= 1e-6 * wanted.norm()


def test_zero_mean_kernels_get_the_least_norm_solution_on_a_torus():
    laplacian = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64)
    inverse = PseudoInverse(Kernel(laplacian[None, None], False), (8, 8), ResolvedSettings(boundary="circular"))
    y = random((1, 8, 8))
    expected = dense_solution(inverse, y)
    assert (inverse.solve(y).value - expected).norm() <= 1e-12 * expected.norm()


def test_an_inverse_describes_itself_in_one_line():
    inverse = deconv_cli.pseudo_inverse(torch.ones(2, 1, 3, 3), input_size=(8, 9), padding="valid", lam=1e-3)
    described = "PseudoInverse(kernel (2, 1, 3, 3), 6×7 → 8×9, boundary zero, λ 0.001, method "
    assert repr(inverse) == f"{described}{inverse.choice.method})"


@pytest.mark.parametrize("boundary", ["circular", "reflect", "unknown"])
def test_a_batch_gives_what_its_images_give(boundary):
    case = Case(boundary, "same", (2, 2, 3, 3), (8, 9))
    inverse = build(case, lam=1e-3)
    y = random((3, 2, 8, 9)) * torch.tensor([1.0, 1e3, 0.0], dtype=torch.float64)[:, None, None, None]
    together = inverse(y)
    for i in range(3):
        alone = inverse(y[i])
        assert (together[i] - alone).norm() <= 1e-7 * alone.norm()
    assert not together[2].any()


def test_the_certificate_is_that_of_the_value():
    case = Case("zero", "same", (2, 2, 3, 3), (8, 9))
    inverse = build(case, lam=1e-3, max_iterations=3, method="iterative")
    y = random((2, 8, 9))
    solution = inverse.solve(y)
    A = inverse.problem.operator.as_matrix()
    mu = 1e-3 * inverse.spectrum.sigma_max**2
    x = solution.value.flatten()
    gradient = A.T @ (y.flatten() - A @ x) - mu * x
    assert solution.certificate == pytest.approx(float(gradient.norm() / (A.T @ y.flatten()).norm()), rel=1e-9)
    assert solution.status is Status.MAX_ITERATIONS
    assert len(solution.residual_norms) == solution.n_iterations == 3


def test_outputs_that_do_not_fit_are_refused():
    inverse = build(Case("zero", "same", (2, 3, 3, 3), (8, 9)), lam=1.0)
    with pytest.raises(ShapeError, match=r"\(2, 3, 3, 3\) gives 2 channels, but the image of 8×9 samples has 4"):
        inverse(random((4, 8, 9)))
    with pytest.raises(ShapeError, match=r"gives an output of \(8, 9\)"):
        inverse(random((2, 9, 8)))
    with pytest.raises(UsageError, match=r"built for torch.float64"):
        inverse(random((2, 8, 9)).float())


def test_the_method_is_chosen_with_a_reason_and_can_be_overridden():
    def chosen(boundary, padding="same", shape=(1, 1, 3, 3), size=(28, 29), **settings):
        return build(Case(boundary, padding, shape, size), **settings).choice

    assert chosen("circular").method == "fft"
    assert chosen("unknown", lam=0.1).method == "strip"
    assert chosen("zero").method == "direct"
    # Of 30 · 31 − 28 · 29 unobserved outputs the two rows below the image, 62, go by FFTs.
    square = chosen("reflect").reason
    assert "the border's system of 118 unknowns is solved exactly: FFTs eliminate 62 of them" in square
    assert "is factored once, exactly" in chosen("zero", shape=(4, 4, 3), size=(500,)).reason
    # Underdetermined, with pixels that repeat others: no direct way to the least norm, unless the image is small.
    assert chosen("reflect", shape=(1, 2, 3, 3)).method == "dense"
    assert chosen("reflect", shape=(1, 2, 3, 3), size=(64, 60)).method == "iterative"
    # So small that the whole matrix costs less than the calls of anything else.
    assert chosen("reflect", size=(8, 9)).method == "dense"
    assert "a matrix of 72 × 144 is so small" in chosen("reflect", shape=(1, 2, 3, 3), size=(8, 9)).reason
    # A wide border: an iteration on it ends before it would be factored.
    for boundary in BORDERS:
        for penalty in PENALTIES:
            larger = chosen(boundary, shape=(1, 1, 15, 15), size=(200, 200), lam=0.1, penalty=penalty)
            assert larger.method == "strip"
            assert "a strip along the border, which an iteration solves" in larger.reason
    forced = chosen("circular", lam=0.1, method="iterative")
    assert (forced.method, forced.reason) == ("iterative", "given by the user")
    with pytest.raises(UsageError, match="method fft inverts"):
        chosen("zero", lam=0.1, method="fft")


def test_a_kernel_of_zero_mean_is_inverted_by_a_dense_matrix_in_a_small_image():
    """It annihilates constants on a torus, under zeros it does not."""
    taps = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64)
    inverse = PseudoInverse(Kernel.from_tensor(taps), (30, 29), ResolvedSettings())
    assert (inverse.choice.method, "singular" in inverse.choice.reason) == ("dense", True)
    y = random((1, 30, 29))
    expected = dense_solution(inverse, y)
    assert (inverse.solve(y).raise_for_status().value - expected).norm() <= 1e-6 * expected.norm()


def test_a_singular_symbol_bars_the_direct_way():
    """Channels that depend on one another do so on every torus."""
    taps = random((2, 2, 3, 3))
    taps[:, 1] = 2 * taps[:, 0]
    for size, method in (((16, 15), "dense"), ((30, 29), "iterative")):
        inverse = PseudoInverse(Kernel(taps, False), size, ResolvedSettings())
        assert inverse.choice.method == method
        assert "singular at some frequency" in inverse.choice.reason
    with pytest.raises(UsageError, match="method direct fails"):
        PseudoInverse(Kernel(taps, False), (6, 5), ResolvedSettings(method="direct"))


def test_multi_channel_inverse_under_zero_padding():
    """The question this tool exists for, small: a random 8 → 8 kernel, 3 × 3, `padding=1`."""
    kernel, x = random((8, 8, 3, 3)), random((2, 8, 24, 23), seed=1)
    y = torch.nn.functional.conv2d(x, kernel, padding=1)
    inverse = PseudoInverse(Kernel.from_tensor(kernel), (24, 23), ResolvedSettings(padding=1))
    assert inverse.choice.method == "direct"
    assert (inverse(y) - x).norm() <= 1e-8 * x.norm()
    single = PseudoInverse(Kernel.from_tensor(kernel.float()), (24, 23), ResolvedSettings(padding=1, lam=1e-6))
    solution = single.solve(y.float()).raise_for_status()
    assert solution.certificate <= 1e-6


BORDERS = ["unknown", "zero", "reflect", "symmetric", "replicate"]


@pytest.mark.parametrize("boundary", BORDERS)
@pytest.mark.parametrize("penalty", list(PENALTIES))
def test_the_strip_takes_no_more_iterations_for_larger_images(penalty, boundary):
    """From 64² to 128² pixels, with a disk of 9 × 9; to 2048² in the benchmarks."""
    offset = torch.arange(9, dtype=torch.float64) - 4
    disk = (offset[:, None] ** 2 + offset**2 <= 17).double()
    n_iterations = []
    for n in (64, 128):
        inverse = PseudoInverse(
            Kernel.from_tensor(disk / disk.sum()),
            (n, n),
            ResolvedSettings(boundary=boundary, lam=1e-3, penalty=penalty, method="strip"),
        )
        solution = inverse.solve(random((1, n, n))).raise_for_status()
        assert solution.certificate <= 1e-10
        n_iterations.append(solution.n_iterations)
    assert n_iterations[1] <= n_iterations[0] + 2
    assert 0 < n_iterations[1] <= 60


def test_calling_an_inverse_that_does_not_converge_warns():
    inverse = build(Case("zero", "same", (1, 1, 3, 3), (8, 9)), lam=1e-6, method="iterative", max_iterations=1)
    with pytest.warns(RuntimeWarning, match="iterations ran out"):
        inverse(random((1, 8, 9)))


RANK_SIZE = (6, 5)


def rank_deficient():
    """Taps of two channels, of which one is twice the other."""
    taps = random((2, 2, 3, 3))
    taps[:, 1] = 2 * taps[:, 0]
    return taps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_the_rank_leaves_open_is_left_out(dtype):
    kernel = Kernel(rank_deficient().to(dtype), False)
    inverse = PseudoInverse(kernel, RANK_SIZE, ResolvedSettings(boundary="replicate", method="dense"))
    y = random(inverse.operator.output_shape).to(dtype)
    solution = inverse.solve(y)
    matrix = inverse.operator.in_float64().as_matrix()
    expected = torch.linalg.pinv(matrix, rtol=default_rcond(dtype)) @ y.double().flatten()
    error = (solution.value.flatten() - expected).norm() / expected.norm()
    assert error <= (1e-10 if dtype == torch.float64 else 1e-6)
    assert error <= solution.distance_bound
    assert solution.status is Status.CLOSED_FORM
    assert solution.value.dtype == dtype
