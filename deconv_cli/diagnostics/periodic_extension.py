"""Data of a picture continued onto a torus by an estimate, so that the rules of a torus apply."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from deconv_cli.diagnostics.lambda_rules import SpectralData
from deconv_cli.diagnostics.noise_spectrum import draw_noise, interpolated
from deconv_cli.diagnostics.torus_modes import torus_modes
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.noise_model import NoiseModel
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import crop, space_axes, squared_gradient
from deconv_cli.operators.boundary_rules import as_rule
from deconv_cli.operators.circulant import BlockCirculant, next_fast_size, torus_symbol
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.extension import close_smoothly
from deconv_cli.operators.geometry import Geometry
from deconv_cli.operators.spectrum import kernel_spectrum
from deconv_cli.regularizers import PenaltyLike, find_penalty
from deconv_cli.solvers.clipped import solve_clipped
from deconv_cli.solvers.inverse import Inverse
from deconv_cli.solvers.iterative import TorusPreconditioner
from deconv_cli.solvers.normal_equations import NormalEquations
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.solution import StoppingRule
from deconv_cli.solvers.solver import build_inverse, choose_method
from deconv_cli.vocabulary import Size

MAX_SIDE = 768
_MAX_SIDE_OF_BLOCKS = 384
_MAX_BLOCK_OPERATIONS = 3e8
_TOLERANCE = 1e-4
"""Certificate of the estimates that continue the data; λ needs no more digits."""
_RULE = StoppingRule(_TOLERANCE, max_iterations=200)
"""For estimates with clipped samples; at a tolerance of 1e-3 creases remain in what they predict."""
_IMPROVEMENT = 0.2
"""The part of the gradient that a step of `improved` leaves."""
_NEAR_LAMBDA = 0.3
"""An inverse also improves estimates for λ whose logarithm is as near as this."""
_MIN_GAP, _MIN_GAP_IN_SPACE = 16, 4


class PeriodicExtension:
    """Continues data onto a torus: observed in the frame, predicted from an estimate beyond it.

    It takes a piece of at most 768 × 768 samples (less if channels mix) from the middle of the data, and assumes
    nothing about the scene outside it; periodic data of that size stay as they are. Of the boundary, it uses only
    whether it is circular. `max_memory` is how many bytes an estimate may take.

    Attributes:
        sigma_max: the largest singular value on the torus of the whole data, which λ is measured by.
        is_periodic: the data are periodic, and need no continuation.
        window: size of the piece.
        torus: size of the torus.
        modes: singular vectors and values on that torus.
        filled: the window, with clipped samples as `continued` predicted them last.
    """

    filled: Tensor

    def __init__(
        self,
        kernel: Kernel,
        size: Size,
        *,
        boundary: str,
        penalty: PenaltyLike,
        max_memory: int | None = None,
        noise: NoiseModel | None = None,
    ) -> None:
        self.kernel, self.penalty, self.max_memory, self.noise = kernel, find_penalty(penalty), max_memory, noise
        self.sigma_max = kernel_spectrum(kernel.taps, size).sigma_max
        side = _affordable_side(kernel)
        self.window = affordable_window(size, side)
        self.is_periodic = as_rule(boundary).is_periodic and self.window == tuple(size)
        self.torus = self.window if self.is_periodic else _roomy_torus(self.window, kernel.size)
        self.modes = torus_modes(kernel.taps, self.torus, is_bounded=False)
        self._blur = BlockCirculant(torus_symbol(kernel.taps.detach(), self.torus), self.torus)
        self._drawn = kernel.taps.new_empty(0)  # the same in every round
        self._kept: tuple[float, Inverse] | None = None

    def initial(self, y: Tensor) -> SpectralData:
        """Close data `(C, *size)` or `(B, C, *size)` without the bias smoothly, before any estimate.

        Raises:
            ShapeError: `y` does not fit the kernel.
        """
        return self._transformed(close_smoothly(self._piece(y), self.torus))

    def improved(self, y: Tensor, lam: float, estimate: Tensor | None) -> Tensor:
        """Improve an estimate towards the solution with λ = `lam`; without one, begin with that of closed data.

        Each call leaves a fifth of the gradient, so λ and the estimate settle together. For the four stacks that tuned
        this part, λ came within 1 % of the λ of exact estimates, in as many iterations as one solve to `_TOLERANCE`.
        """
        piece, problem = self._piece(y), self._problem(lam)
        if estimate is None:
            estimate = TorusPreconditioner(problem).estimate(piece)
        equations = NormalEquations.of_data(problem, piece)
        gradient = equations.remaining(estimate, equations.residual(estimate))
        if self._kept is None or abs(math.log(lam / self._kept[0])) > _NEAR_LAMBDA:
            self._kept = None  # frees its memory first
            self._kept = lam, self._inverse(problem, _IMPROVEMENT)
        return estimate + self._kept[1].approximate_normal(gradient)

    def continued(
        self, y: Tensor, lam: float, is_clipped: Tensor | None = None, estimate: Tensor | None = None
    ) -> SpectralData:
        """Continue the data beyond the frame, and raise clipped samples, by the prediction of an estimate.

        `is_clipped` marks samples that are only lower bounds; it is ignored for periodic data. The estimate is one of
        `improved`; by default the solution with λ = `lam`.
        """
        if self.is_periodic:
            return self.initial(y)
        piece = self._piece(y)
        data = self._predicted(piece, lam, is_clipped, estimate)
        frame = crop(data, (0,) * len(self.window), self.window)
        share = detailed_share(data, frame)
        if is_clipped is None:
            frame.copy_(piece)
            return self._transformed(data, math.prod(self.window) / math.prod(self.torus), share)
        is_free = self._piece(is_clipped) & (frame > piece)
        self.filled = torch.where(is_free, frame, piece)
        # The predicted part may be large. Without noise in it, λ would become smaller from round to round.
        left = torch.where(is_free, 0, piece - frame).square().sum() / (~is_free).sum().clamp_min(1)
        if self._drawn.shape != data.shape:
            self._drawn = draw_noise(self.noise or NoiseModel(), data, 0, len(self.window))
        data += left.sqrt() * self._drawn
        frame.copy_(torch.where(is_free, frame, piece))
        return self._transformed(data, detailed_share=share)

    def fill(self, y: Tensor) -> tuple[Tensor, float]:
        """Fill samples of the window as `continued` did last.

        Gives data of the shape of `y`, and the part of the window's samples that did not change.
        """
        filled = y.clone()
        window = self._middle(filled)
        share = synchronize.as_number((self.filled == self._piece(y)).double().mean())
        window.copy_(self.filled.reshape(window.shape))
        return filled, share

    def _predicted(
        self, piece: Tensor, lam: float, is_clipped: Tensor | None, estimate: Tensor | None = None
    ) -> Tensor:
        """Predict the data on the torus from an estimate of a piece; by default it is made with λ = `lam`."""
        if estimate is None:
            problem = self._problem(lam)
            if is_clipped is None:
                estimate = self._inverse(problem, _TOLERANCE).solve(piece).value
            else:
                estimate = solve_clipped(problem, piece, self._piece(is_clipped), _RULE).value
        estimate = estimate.reshape(-1, *estimate.shape[-len(self.torus) - 1 :])
        return self._blur.forward(close_smoothly(estimate, self.torus))

    def _piece(self, y: Tensor) -> Tensor:
        """Crop the window, with the channels arranged for the operators: shape `(n, C_out, *window)`."""
        outputs = self.kernel.split(y, are_outputs=True)
        outputs = outputs.reshape(-1, *outputs.shape[-len(self.window) - 1 :])
        return self._middle(outputs)

    def _middle(self, outputs: Tensor) -> Tensor:
        """Crop the window from the middle of samples whose last axes are those of space."""
        size = outputs.shape[-len(self.window) :]
        start = tuple((n - kept) // 2 for n, kept in zip(size, self.window, strict=True))
        return crop(outputs, start, self.window)

    def _transformed(self, data: Tensor, observed_share: float = 1.0, detailed_share: float = 1.0) -> SpectralData:
        return SpectralData.of(
            self.modes,
            data,
            penalty=self.penalty,
            sigma_max=self.sigma_max,
            observed_share=observed_share,
            noise=self._noise_power,
            detailed_share=detailed_share,
        )

    @cached_property
    def _noise_power(self) -> Tensor | None:
        """The power of the noise at the frequencies of the torus, shape `(F,)`; `None` for white noise."""
        if self.noise is None or self.noise.is_white:
            return None
        return interpolated(self.noise.spectrum, self.torus, self.modes.sigma).flatten()

    @cached_property
    def _operator(self) -> Convolution:
        geometry = Geometry.of_output(self.window, self.kernel.size, "valid")
        return self.kernel.detached().convolution(geometry, as_rule("unknown"))

    def _problem(self, lam: float) -> TikhonovProblem:
        scale = (self.sigma_max / self._operator.spectrum.sigma_max) ** 2
        return TikhonovProblem(self._operator, lam * scale, penalty=self.penalty)

    def _inverse(self, problem: TikhonovProblem, tolerance: float) -> Inverse:
        rule = replace(_RULE, tolerance=tolerance)
        return build_inverse(problem, rule, choose_method(problem, max_memory=self.max_memory))[0]


def detailed_share(whole: Tensor, frame: Tensor) -> float:
    """Estimate the part of a torus `(n, C, *torus)` that has as much detail as a frame in it, between 0 and 1.

    The continued part is smoother, above all in fine detail. The result is the geometric mean of two shares: of the
    squares of differences between neighbors, and of those from the mean.
    """
    n_axes, means = whole.ndim - 2, []
    level = frame.mean(dim=space_axes(n_axes), keepdim=True)
    for of in (whole, frame):
        detail = squared_gradient(of, n_axes).mean() * (of - level).square().mean()
        means.append(synchronize.as_number(detail.sqrt()))
    return min(means[0] / means[1], 1.0) if means[1] > 0 else 1.0


def lambda_of_size(lam: float, sigma_max: float, kernel: Kernel, size: Size) -> float:
    """Convert λ to another size of the image, since it is measured by σmax on the image's torus."""
    return lam * (sigma_max / kernel_spectrum(kernel.taps, size).sigma_max) ** 2


def affordable_window(size: Size, side: int = MAX_SIDE) -> Size:
    """Find the size of the largest piece with at most `side` × `side` samples and axes as equal as possible."""
    longest = side if len(size) == 2 else max(size)
    while math.prod(min(n, longest) for n in size) > side**2:
        longest = min(longest - 1, int(longest * 0.99))
    return tuple(min(n, longest) for n in size)


def _roomy_torus(window: Size, kernel_size: Size) -> Size:
    # In space a wide gap would be most of the torus, and the continued part contains nothing about λ.
    least, n_kernels = (_MIN_GAP, 2) if len(window) < 3 else (_MIN_GAP_IN_SPACE, 1)
    gaps = (k - 1 + max(least, n_kernels * (k - 1)) for k in kernel_size)
    return tuple(next_fast_size(n + gap) for n, gap in zip(window, gaps, strict=True))


def _affordable_side(kernel: Kernel) -> int:
    n_outputs, n_inputs = kernel.taps.shape[:2]
    if min(n_outputs, n_inputs) == 1:
        return MAX_SIDE
    per_frequency = n_outputs * n_inputs * min(n_outputs, n_inputs)
    return max(32, min(_MAX_SIDE_OF_BLOCKS, int((2 * _MAX_BLOCK_OPERATIONS / per_frequency) ** 0.5)))
