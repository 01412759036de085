"""The exact solution for any boundary and size, by an iteration on the unknowns of the border.

The system of `border_system.py` has its unknowns in a band of rows and a band of columns, and FFTs along a band solve
it exactly. The rows are eliminated, and the iteration runs on the columns, preconditioned by the closed band of
columns. It only has to solve the crossing of the two bands, so the number of iterations does not grow with the image.
Where the bands cross, the unknowns are in the rows, and the columns are zero. The system is positive definite if only
outputs and differences are unknown (conjugate gradients), and indefinite if pixels are tied as well (GMRES).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.circulant import MAX_PAIRS_AS_PLANES, near_fast_size, to_float64, torus_symbol
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.extension import close_smoothly
from deconv_cli.operators.geometry import Geometry
from deconv_cli.operators.spectrum import has_one_sign
from deconv_cli.regularizers import find_penalty
from deconv_cli.solvers.bands import BandSpectrum, from_lines, invert_lines, multiply_lines, to_lines
from deconv_cli.solvers.border_system import BorderSystem, Spectra, as_real, band_matrix, count_indefinite_unknowns
from deconv_cli.solvers.cgls import Watch, solve_definite, solve_indefinite
from deconv_cli.solvers.embedding import TorusEmbedding, TorusLayout
from deconv_cli.solvers.fourier import TorusBlocks, torus_blocks
from deconv_cli.solvers.inverse import BorderInverse, Inverse
from deconv_cli.solvers.problem import MIN_LAMBDA_IN_FLOAT32, TikhonovProblem, check_ramps
from deconv_cli.solvers.solution import GradientLog, StoppingRule
from deconv_cli.solvers.solver import (
    Cost,
    Solver,
    arithmetic_itemsize,
    count_vectors,
    general_refusal,
    symbol_bytes,
    transform_operations,
)
from deconv_cli.vocabulary import Size

# Entries of a symbol that are factored in double precision at a time, and number of arrays of this size meanwhile.
MAX_ENTRIES_AT_ONCE, N_FACTORED = 2**18, 5
# Pixels of the small image beside those of eight kernels. Measured for a disk of nine taps with λ = 1e-3, 1e-10: 20
# iterations under mirrored pixels without it, 5 with 64 of them, 4 with 128 and 3 with 256.
CROSSING = 128
# The small image is used where the image is this many times as long, or twice that for a tiny λ, under which it
# takes many iterations too. Where many pixels repeat the same one, the large image takes many without it.
MIN_TIMES_CROSSING, MIN_TIMES_CROSSING_OF_REPEATED = 4, 2.5
# Its system is solved to this power of the unit of rounding, since conjugate gradients want the same preconditioner
# every time; GMRES does not, and this part, which is about as much as the small image can know, does for it.
CROSSING_ACCURACY, CROSSING_ACCURACY_OF_GMRES = 0.75, 3e-3
# Its system is solved to this part where an outer iteration corrects the rest.
ROUGH_ACCURACY = 0.03
# From this λ on that leaves less than a fiftieth under all boundaries; at 1e-4 it may leave all under mirrored pixels.
ROUGH_LAMBDA = 1e-3
MAX_CROSSING_ITERATIONS = 100
# A solution to this part of its right-hand side is corrected by an outer iteration.
ROUGH_TOLERANCE = 0.1


class StripSystem:
    """The border's system with its rows eliminated, and the image that follows from its solution.

    All is scaled to σmax = 1: the residual of the system then has the unit of the data, and σmax times its norm
    estimates the remaining gradient. The torus is `n_more` pixels longer than it must be, by default for fast FFTs.
    """

    def __init__(self, problem: TikhonovProblem, n_more: Size | None = None) -> None:
        operator = problem.operator
        taps = operator.kernel
        n_more = _enlarge(problem) if n_more is None else n_more
        # The blocks of a blur are sums of positive numbers, and λ is not tiny.
        is_safe = problem.runs_in_own_precision and problem.lam > 0 and has_one_sign(taps)
        wide = taps if is_safe else to_float64(taps)
        self._places = places = TorusEmbedding.of(operator.geometry, operator.boundary, taps.device, n_more=n_more)
        self._torus = places.torus
        self._input_shape = operator.input_shape
        self._runs_on = not operator.boundary.is_zero
        self._dtype = taps.dtype if problem.runs_in_own_precision else wide.dtype
        symbol = torus_symbol(wide, places.torus, places.origin)
        self._sigma = (
            problem.sigma_max if problem.lam > 0 else synchronize.as_number(torch.linalg.matrix_norm(symbol).max())
        )
        symbol /= self._sigma
        penalty = find_penalty(problem.penalty).symbol(places.torus, wide.dtype, taps.device)
        blocks = _narrow_blocks(symbol, problem.lam, penalty, self._dtype, covers_inputs=places.covers_inputs(symbol))
        self._system = system = BorderSystem(places, blocks, operator.boundary, problem.penalty, problem.lam)
        if system.kinds:
            self._columns = band_matrix(system.kinds, blocks, axis=1)
            # The inverses on the closed band of rows and on that of columns.
            self._closed = invert_lines(band_matrix(system.kinds, blocks, axis=0)), invert_lines(self._columns)
        self._crossing = _crossing(problem, n_more, places)
        self._lam = problem.lam

    def solve(
        self, residual: Tensor | None, gradient: Tensor | None, log: GradientLog, *, closes: bool = False
    ) -> Tensor:
        """Solve (AᴴA + μLᴴL) x = Aᴴ·residual + gradient, until the system's own residual reaches the log's goal.

        The shapes are `(*batch, C_out, H_y, W_y)` and `(*batch, C_in, H, W)`; `None` means zero. `closes` continues the
        outputs smoothly around the torus at the start: a photograph then needs fewer iterations.
        """
        given = residual if residual is not None else gradient
        assert given is not None
        if residual is not None and closes and self._runs_on:
            residual = close_smoothly(residual, self._torus)
        outputs = None if residual is None else BandSpectrum(self._transform(residual))
        residual = None
        inputs = None if gradient is None else BandSpectrum(self._transform(gradient / self._sigma))
        spectra = self._complete((outputs, inputs), given.shape[:-3], log)
        image = self._to_image(self._system.image(spectra))
        return image.to(given.dtype).reshape(*given.shape[:-3], *self._input_shape)

    def solve_transposed(self, g: Tensor, log: GradientLog) -> Tensor:
        """Compute the outputs A(AᴴA + μLᴴL)⁺g = Pᴴ(g − Wν) − Mu, shape `(*batch, C_out, H_y, W_y)`.

        Args:
            g: shape `(*batch, C_in, H, W)`.
            log: when to stop.
        """
        spectra = self._complete((None, BandSpectrum(self._transform(g))), g.shape[:-3], log)
        field = torch.fft.irfft2(self._system.defect(spectra), s=self._torus) / -self._sigma
        height, width = self._places.output_size
        return field[..., :height, :width].to(g.dtype).reshape(*g.shape[:-3], field.shape[-3], height, width)

    def approximate(self, gradient: Tensor, log: GradientLog) -> Tensor:
        """Solve (AᴴA + μLᴴL) x = gradient to about a hundredth, by two FFTs and a small image; see `solve`."""
        if self._crossing is None or not self._system.kinds or self._lam < ROUGH_LAMBDA:
            return self.solve(None, gradient, log)
        given = None, BandSpectrum(self._transform(gradient / self._sigma))
        rows, columns = self._system.read(given)
        solved = self._solve_bands(rows, columns, self._crossing)
        image = self._to_image(self._system.image(self._system.spectra(-solved[0], -solved[1], given)))
        return image.to(gradient.dtype).reshape(gradient.shape)

    def _solve_bands(self, rows: Tensor, columns: Tensor, small: StripSystem) -> tuple[Tensor, Tensor]:
        """Solve each band as if it were closed, and add what their crossing changes in a small image."""
        corners = self._corners(rows, 0, small), self._corners(columns, 1, small)
        goal = ROUGH_ACCURACY * torch.hypot(*map(_norm, corners))
        exact = small._solve_border(*corners, _until(goal))

        def solve(right: Tensor, axis: int) -> Tensor:
            change = exact[axis] - multiply_lines(small._closed[axis], corners[axis])
            return multiply_lines(self._closed[axis], right) + small._spread(change, axis, self)

        return solve(rows, 0), solve(columns, 1)

    def _complete(self, given: Spectra, batch: tuple[int, ...], log: GradientLog) -> Spectra:
        if not self._system.kinds:  # the torus is all there is
            return given
        rows, columns = self._system.read(given)

        def goes_on(remaining: Tensor) -> bool:
            remaining = (self._sigma * remaining).reshape(batch)
            log.add(remaining)
            return not log.is_spent and not synchronize.holds_everywhere(remaining <= log.goal)

        rows, columns = self._solve_border(rows, columns, None if log.is_spent else goes_on)
        return self._system.spectra(-rows, -columns, given)

    def _solve_border(self, rows: Tensor, columns: Tensor, watch: Watch | None) -> tuple[Tensor, Tensor]:
        """Solve the system for right-hand sides in both bands; `None` leaves the columns at zero."""
        first = multiply_lines(self._closed[0], rows)
        right = columns - self._system.couple(first, 1)
        columns = torch.zeros_like(right) if watch is None else self._iterate(right, watch)
        return first - multiply_lines(self._closed[0], self._system.couple(columns, 0)), columns

    def _iterate(self, right: Tensor, watch: Watch) -> Tensor:
        """Solve for the columns, with the rows eliminated."""
        if right.numel() == 0:
            return right
        packed = self._pack(right)
        if self._system.is_definite:
            solved = solve_definite(self._apply, self._precondition, self._sign * packed, watch)
        else:
            solved = solve_indefinite(self._apply, self._precondition, packed, watch, count_vectors(packed.numel()))
        return self._unpack(solved)

    @property
    def _sign(self) -> float:
        """The sign that makes a definite system positive."""
        return -1.0 if self._system.is_definite and self._system.has_ties else 1.0

    def _apply(self, vector: Tensor) -> Tensor:
        columns = self._unpack(vector)
        rows = multiply_lines(self._closed[0], self._system.couple(columns, 0))
        return self._pack(self._sign * (multiply_lines(self._columns, columns) - self._system.couple(rows, 1)))

    def _precondition(self, vector: Tensor) -> Tensor:
        """Solve the closed band, and add what the crossing changes in a small image: it hardly depends on the size."""
        columns, small = self._unpack(vector), self._crossing
        solved = self._sign * multiply_lines(self._closed[1], columns)
        if small is not None:
            right = self._corners(columns, 1, small)
            is_definite, eps = self._system.is_definite, torch.finfo(vector.dtype).eps
            accuracy = eps**CROSSING_ACCURACY if is_definite else CROSSING_ACCURACY_OF_GMRES
            # A definite system takes its sign into account already.
            change = small._iterate(self._sign * right, _until(accuracy * _norm(right)))
            change -= self._sign * multiply_lines(small._closed[1], right)
            solved = solved + small._spread(change, 1, self)
        return self._pack(solved)

    def _corners(self, lines: Tensor, axis: int, small: StripSystem) -> Tensor:
        """Copy the first and the last places of the lines of a band to those of a small image."""
        n, n_small = self._torus[1 - axis], small._torus[1 - axis]
        values = from_lines(lines, n)
        begin = n - n_small + n_small // 2
        return to_lines(torch.cat([values[:, : n_small // 2], values[:, begin:]], dim=1))

    def _spread(self, lines: Tensor, axis: int, large: StripSystem) -> Tensor:
        """Copy the lines of a band to the first and the last places of those of a large image."""
        n, n_large = self._torus[1 - axis], large._torus[1 - axis]
        first, last = from_lines(lines, n).split([n // 2, n - n // 2], dim=1)
        return to_lines(torch.cat([first, first.new_zeros(len(first), n_large - n, first.shape[-1]), last], dim=1))

    def _transform(self, field: Tensor) -> Tensor:
        flat = field.reshape(math.prod(field.shape[:-3]), *field.shape[-3:])
        return torch.fft.rfft2(flat.to(self._dtype), s=self._torus)

    def _to_image(self, spectrum: Tensor) -> Tensor:
        _, height, width = self._input_shape
        return torch.fft.irfft2(spectrum, s=self._torus)[..., :height, :width] / self._sigma

    def _pack(self, columns: Tensor) -> Tensor:
        """Make vectors of the pixels of columns, zero where the bands cross: there they belong to the rows."""
        return (from_lines(columns, self._torus[0]) * self._system.outside_rows).flatten(1)

    def _unpack(self, vector: Tensor) -> Tensor:
        return to_lines(vector.unflatten(-1, self._system.outside_rows.shape))


def _norm(lines: Tensor) -> Tensor:
    return torch.linalg.vector_norm(lines, dim=(-2, -1))


def _enlarge(problem: TikhonovProblem, *, is_rough: bool = False) -> Size:
    """Count the pixels to add to a torus for fast FFT lengths; zero if its size must not change.

    Differences between pixels that nothing determines cost something, which changes the solution near the edge. A rough
    solution, which an outer iteration corrects, may do so.
    """
    operator = problem.operator
    torus = TorusLayout.plan(operator.geometry, operator.boundary).torus
    is_free = not is_rough and operator.boundary.is_unknown and find_penalty(problem.penalty).takes_differences
    if problem.lam == 0 or is_free or operator.boundary.is_periodic:
        return (0,) * len(torus)
    return tuple(near_fast_size(n) - n for n in torus)


def _until(goal: Tensor) -> Watch:
    """Iterate on the small image until its residual reaches a goal."""
    counter = itertools.count(1)
    return lambda left: next(counter) < MAX_CROSSING_ITERATIONS and not synchronize.holds_everywhere(left <= goal)


def _crossing(problem: TikhonovProblem, n_more: Size, places: TorusEmbedding) -> StripSystem | None:
    """Build the same system for a small image; `None` if the image is not much larger, or for λ = 0."""
    operator, geometry = problem.operator, problem.operator.geometry
    length = CROSSING + 8 * max(geometry.kernel_size)
    repeats = any(
        line is not None and len(line) > 3 * len(synchronize.distinct(line)[0]) for line in places.line_sources
    )
    n_times = MIN_TIMES_CROSSING_OF_REPEATED if repeats else MIN_TIMES_CROSSING
    n_times *= 1 if problem.lam >= MIN_LAMBDA_IN_FLOAT32 else 2
    if problem.lam == 0 or min(geometry.image_size) < n_times * length:
        return None
    small = Geometry((length, length), geometry.kernel_size, geometry.pads)
    operator = Convolution.of_geometry(operator.kernel, small, operator.boundary)
    return StripSystem(replace(problem, operator=operator, known_sigma_max=problem.sigma_max), n_more)


def _narrow_blocks(
    symbol: Tensor, weight: float, penalty: Tensor, dtype: torch.dtype, *, covers_inputs: bool
) -> TorusBlocks:
    """Factor in double precision, some frequencies at a time, and keep the result in the dtype of the arithmetic."""
    n_outputs, n_inputs = symbol.shape[-2:]

    def empty(n_to: int, n_from: int, dtype: torch.dtype) -> Tensor:
        return symbol.new_empty(*symbol.shape[:2], n_to, n_from, dtype=dtype)

    wide = dtype.to_complex()
    hermitian = dtype if n_outputs == n_inputs == 1 else wide
    narrow = TorusBlocks(
        empty(n_inputs, n_outputs, wide), empty(n_outputs, n_outputs, hermitian), empty(n_inputs, n_inputs, hermitian)
    )
    n_rows = max(1, MAX_ENTRIES_AT_ONCE // symbol[0].numel())
    for first in range(0, len(symbol), n_rows):
        part = slice(first, first + n_rows)
        blocks = torus_blocks(symbol[part], weight, penalty[part], covers_inputs=covers_inputs)
        narrow.estimate[part], narrow.outputs[part] = blocks.estimate, as_real(blocks.outputs)
        narrow.inputs[part] = as_real(blocks.inputs)
    return narrow


BYTES_PER_NUMBER = 16
# The matrices across a wide border grow with its cube: beyond the memory of this many symbols, other solvers do better.
MAX_BAND_SYMBOLS, MAX_BAND_SYMBOLS_PENALIZED = 24, 40
MIN_BAND_BYTES = 2**26
# Images that an application keeps.
N_IMAGES = 4.5
# Copies of these matrices in double precision while they are written out and inverted: more where pixels repeat others.
N_BANDS, N_BANDS_OF_COPIES = 2, 6


class StripSolver(Solver):
    """An iteration on the unknowns along the border, in two dimensions."""

    why = "everything is diagonal in frequency except for a strip along the border, which an iteration solves"

    def covers(self, problem: TikhonovProblem) -> str | None:
        """Cover λ > 0, except penalties on differences of an image that wraps around; for λ = 0 well-posed shapes.

        That is more outputs than pixels or more pixels than outputs, along either axis or in the channels; with fewer
        outputs no pixel may repeat another.
        """
        operator = problem.operator
        if problem.n_dims != 3 or operator.boundary.has_factors:
            return "is for two dimensions, and boundaries that copy pixels unchanged"
        if problem.lam > 0:
            wraps = operator.boundary.is_periodic and find_penalty(problem.penalty).takes_differences
            is_covered = not wraps
        else:
            sizes = zip(operator.output_shape, operator.input_shape, (1, *operator.geometry.kernel_size), strict=True)
            is_square = problem.n_outputs == problem.n_inputs
            is_covered = problem.has_full_rank_by_shape and not (
                is_square and any(n_outputs == n_pixels and k > 1 for n_outputs, n_pixels, k in sizes)
            )
        if is_covered and _band_bytes(problem) > max(MIN_BAND_BYTES, _most_band_bytes(problem)):
            return "is for borders that are narrow compared with the image, but this kernel extends too far"
        if not is_covered:
            return (
                "does not cover this problem (λ = 0 with an output of unchanged size, a periodic penalty, or "
                "constants that nothing determines)"
            )
        return general_refusal(problem)

    def cost(self, problem: TikhonovProblem) -> Cost:
        """Count the iterations, each of which applies the border's system twice, and the vectors that GMRES stores."""
        # Measured for blurs and layers: 3 to 10 iterations at a condition number of 1e2, 10 to 60 at 1e6. To set it up
        # takes as long as ten.
        digits = min(6.0, math.log10(problem.condition))
        n_steps = 10 + digits**2
        n_operations = 4 * transform_operations(problem) * n_steps
        share, channels = arithmetic_itemsize(problem) / 8, (problem.n_outputs, problem.n_inputs)
        bands = share * _band_bytes(problem)
        is_single = max(channels) == 1
        # P, M and N. For one channel only P is complex. For few channels all three are copied.
        n_blocks = 2 if is_single else 1 + channels[0] / channels[1] + channels[1] / channels[0]
        n_copies = 1 if is_single or math.prod(channels) > MAX_PAIRS_AS_PLANES else 2
        kept = symbol_bytes(problem, share * n_blocks)
        wide = min(symbol_bytes(problem, N_FACTORED), N_FACTORED * 16 * MAX_ENTRIES_AT_ONCE)
        n_bands = N_BANDS_OF_COPIES if problem.operator.boundary.copies_pixels else N_BANDS
        return Cost.of_transforms(
            problem,
            n_operations,
            n_bytes_factored=kept + int(1.5 * bands),  # the columns' matrices and both inverses
            n_bytes_while_built=symbol_bytes(problem, 1.5) + n_copies * kept + wide + int(n_bands * bands),
            n_images=N_IMAGES,
            n_more_numbers=int((2 * n_steps + 1) * count_indefinite_unknowns(problem)),  # GMRES stores its vectors
        )

    def build(self, problem: TikhonovProblem, rule: StoppingRule) -> Inverse:
        """Build the border's system."""
        check_ramps(problem)
        n_more = _enlarge(problem, is_rough=rule.tolerance >= ROUGH_TOLERANCE)
        return BorderInverse(problem, rule, lambda problem: StripSystem(problem, n_more))


STRIP = StripSolver()


def _most_band_bytes(problem: TikhonovProblem) -> int:
    n_symbols = MAX_BAND_SYMBOLS_PENALIZED if problem.lam > 0 else MAX_BAND_SYMBOLS
    n_pixels = math.prod(problem.operator.geometry.extended_size)
    return 8 * n_symbols * n_pixels * max(problem.n_outputs, problem.n_inputs) ** 2


def _band_bytes(problem: TikhonovProblem) -> int:
    """Estimate the memory of the band solvers: a matrix across the border at each frequency along it."""
    layout = TorusLayout.plan(problem.operator.geometry, problem.operator.boundary)
    widths = [
        problem.n_outputs * (n - n_outputs) + problem.n_inputs * (n - n_pixels)
        for n, n_outputs, n_pixels in zip(layout.torus, layout.output_size, layout.image_size, strict=True)
    ]
    lines = zip(widths, reversed(layout.torus), strict=True)
    return sum(BYTES_PER_NUMBER * (n // 2 + 1) * width**2 for width, n in lines)
