"""The system on a border's unknowns, its bands, the square elimination, and the two Krylov methods."""

import math

import pytest
import torch
from cases import random

from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators.boundaries.rule import as_rule
from deconv_cli.operators.circulant import torus_symbol
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.geometry import Geometry
from deconv_cli.parts import PENALTIES
from deconv_cli.regularizers import find_penalty
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers import bands
from deconv_cli.solvers.border_system import BorderSystem
from deconv_cli.solvers.embedding import TorusEmbedding
from deconv_cli.solvers.fourier import torus_blocks
from deconv_cli.solvers.krylov import solve_definite, solve_indefinite
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.square_border import SquareBorderSystem

BORDERS = ["unknown", "zero", "reflect", "symmetric", "replicate"]
WEIGHT = 0.1


def system_of(boundary, penalty, shape=(2, 2, 3, 4), size=(7, 8)):
    kernel = random(shape)
    places = TorusEmbedding.of(Geometry.of_image(size, shape[2:], "same"), as_rule(boundary), kernel.device)
    symbol = torus_symbol(kernel, places.torus, places.origin)
    blocks = torus_blocks(
        symbol, WEIGHT, find_penalty(penalty).symbol(places.torus, torch.float64, kernel.device), covers_inputs=True
    )
    return BorderSystem(places, blocks, as_rule(boundary), penalty, WEIGHT), blocks


def shapes(system):
    """Of the rows' and the columns' unknowns, group by group."""
    rows = [(group.n_channels, group.rows.width, system.groups[0].torus[1]) for group in system.groups]
    columns = [(group.n_channels, group.rows.first, group.columns.width) for group in system.groups]
    return rows, columns


def dense(system):
    """Write the system out, column by column."""
    rows, columns = shapes(system)
    n_unknowns = sum(map(math.prod, rows + columns))
    parts = torch.eye(n_unknowns, dtype=torch.float64).split([math.prod(s) for s in rows + columns], dim=-1)
    parts = [part.unflatten(-1, shape) for part, shape in zip(parts, rows + columns, strict=True)]
    own_rows, own_columns = parts[: len(rows)], parts[len(rows) :]
    spectra = system.spectra(own_rows, own_columns)
    in_rows = system.read_rows(*spectra)
    # What `read_columns` does with its own unknowns, for the rows.
    for i in [n for n, kind in enumerate(system.kinds) if kind.kind == "differences"]:
        in_rows[i] = in_rows[i] + own_rows[i]
    result = in_rows + system.read_columns(*spectra, own_columns)
    return torch.cat([part.flatten(-3) for part in result], dim=-1)


@pytest.mark.parametrize("width", [0, 64])
@pytest.mark.parametrize("boundary", BORDERS)
@pytest.mark.parametrize("penalty", list(PENALTIES))
def test_the_system_is_symmetric_and_definite_where_it_says_so(boundary, penalty, width, monkeypatch):
    monkeypatch.setattr(bands, "MAX_THIN_WIDTH", width)  # by FFTs, and by sums over lines
    system, _ = system_of(boundary, penalty)
    matrix = dense(system)
    torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=1e-13)
    values = torch.linalg.eigvalsh(matrix)
    assert float(values.abs().min()) > 1e-6
    assert bool((values > 0).all()) == (not system.has_ties)


@pytest.mark.parametrize("boundary", ["zero", "reflect", "replicate"])
@pytest.mark.parametrize(
    ("shape", "size"),
    [((2, 2, 3, 3), (7, 8)), ((1, 1, 3, 4), (9, 8)), ((2, 2, 1, 3), (6, 7)), ((2, 2, 3, 1), (6, 7))],
)
def test_square_systems_and_their_transposes_equal_the_dense_inverse(boundary, shape, size):
    operator = Convolution.of_geometry(random(shape), Geometry.of_image(size, shape[2:], "same"), boundary)
    A = operator.as_matrix()
    system = SquareBorderSystem(operator)
    y = random((3, *operator.output_shape), seed=1)
    for estimate, matrix in ((system.estimate(y), A), (system.estimate_transposed(y), A.T)):
        expected = torch.linalg.solve(matrix, y.flatten(1).T).T
        assert (estimate.flatten(1) - expected).norm() <= 1e-15 * float(torch.linalg.cond(A)) ** 2 * expected.norm()


def test_krylov_methods_solve_a_batch_each_for_itself():
    n = 40
    basis = torch.linalg.qr(random((n, n)))[0]
    values = torch.linspace(1, 3, n, dtype=torch.float64)
    definite = basis @ torch.diag(values) @ basis.T
    indefinite = basis @ torch.diag(values * torch.where(torch.arange(n) % 4 == 0, -1, 1)) @ basis.T
    right = random((3, n), seed=1) * torch.tensor([[1.0], [0.0], [1e6]], dtype=torch.float64)
    scale = right.norm(dim=-1)
    for matrix, solve in (
        (definite, solve_definite),
        (indefinite, lambda *args: solve_indefinite(*args, n_vectors=50)),
        (indefinite, lambda *args: solve_indefinite(*args, n_vectors=10)),
    ):
        heights = []

        def watch(remaining, heights=heights):
            heights.append(remaining)
            return len(heights) < 400 and bool((remaining > 1e-12 * scale).any())

        scaling = 1 / definite.diagonal()
        x = solve(lambda v, m=matrix: v @ m.T, lambda v, s=scaling: v * s, right.clone(), watch)
        assert len(heights) < 400
        assert (x @ matrix.T - right).norm(dim=-1).le(1e-11 * scale).all()
        # What the method was told remained is what remains.
        assert (heights[-1] <= 1e-12 * scale).all()


def test_the_iteration_finds_what_the_border_all_but_loses():
    """A random square kernel whose determinant winds: plain conjugate gradients end nowhere near."""
    kernel, x = random((4, 4, 3, 3), seed=1), random((4, 20, 21))
    y = torch.nn.functional.conv2d(x[None], kernel, padding=1)[0]
    settings = ResolvedSettings(padding=1, boundary="zero", method="iterative", tolerance=1e-13)
    solution = PseudoInverse(Kernel(kernel, False), (20, 21), settings).solve(y)
    assert solution.n_iterations <= 60
    assert (solution.value - x).norm() <= 1e-4 * x.norm()
