"""How likely a spectrum is under each of many kernels, with scene and noise fitted for each.

The mean power of the picture is S = scene · |H|² + noise, the noise exponential in frequency, since compression and
denoising in cameras color it. The likelihood is that of Whittle, "Estimation and information in stationary time
series", Arkiv för Matematik 2, 1953, times the prior of the scene; its largest value is found by Levenberg's damped
scoring, for a batch of kernels at once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deconv_cli.errors import MalformedInputError
from deconv_cli.kernels.blind.polar_spectrum import PolarGrid, PolarSpectrum

_SLOPE_PIVOT = 0.1
"""Cycles a pixel, where the prior of the slope does not move the level."""
_AXIS_WIDTH = math.radians(6)

_TERMS = (
    (-3.5, 100.0),  # level
    (-2.7, 0.45),  # slope of the logarithm of power in that of frequency
    (-0.08, 0.15),  # softness of lenses and of resampling: minus the variance of a Gaussian, in square pixels
    (0.0, 0.5),  # twofold variation with direction, cosine
    (0.0, 0.3),  # sine
    (0.0, 0.3),  # fourfold, cosine
    (0.0, 0.25),  # sine
    (0.0, 0.25),  # twofold, growing with frequency, cosine
    (0.0, 0.15),  # sine
    (0.4, 0.9),  # vertical edges
    (0.3, 0.8),  # horizontal edges
)
"""Mean and standard deviation of each coefficient, from sharp photographs in linear light."""


def scene_basis(grid: PolarGrid) -> Tensor:
    """Give the functions of frequency and direction in each cell, shape `(n, 11)`.

    The logarithm of a scene's power is linear in them: a power law, with what varies from scene to scene (Field,
    "Relations between the statistics of natural images and the response properties of cortical cells", Journal of the
    Optical Society of America A 4, 1987).
    """
    f, direction = grid.frequency, grid.direction
    u = (f / _SLOPE_PIVOT).log()
    c2, s2 = (2 * direction).cos(), (2 * direction).sin()
    c4, s4 = (4 * direction).cos(), (4 * direction).sin()
    softness = (2 * math.pi * f).square()
    axes = [_near(direction, 0.0), _near(direction, math.pi / 2)]
    return torch.stack([torch.ones_like(u), u, softness, c2, s2, c4, s4, u * c2, u * s2, *axes], 1)


def _near(direction: Tensor, axis: float) -> Tensor:
    distance = torch.remainder(direction - axis + math.pi / 2, math.pi) - math.pi / 2
    return (-0.5 * (distance / _AXIS_WIDTH).square()).exp()


_SCENE_VARIANCE = 0.2
"""Of the logarithm of a scene's power in a cell, about what the model says."""
_TEMPER = 0.3
"""Share of the cells that count as independent: what the model of the scene misses is alike in neighboring cells."""
_NOISE_SPREAD = (4.0, 8.0)
"""Standard deviations of the logarithm of the noise's power, and of its slope a cycle a pixel."""
_NOISE_SLOPE = -3.0
_MIDDLE = 0.3
_MOST_STEPS = 40
_MOST_COARSE_STEPS = 8
_CONVERGED = 1e-3
_HOPELESS = 1e5
"""Damping at which no step leads further."""
_BATCH = 128
_LEAKAGE = 1e-10
"""Power in a cell, in parts of the strongest, below which the Hann window brings more from low frequencies than is
there. Of five pictures without noise, a right Gaussian of σ 2 or 3 seemed 10 to 30 % too wide from such cells."""
_NO_DETAIL = 1e-15
"""Power that rounding leaves of a constant picture."""


def fit_spectrum(spectrum: PolarSpectrum, gains: Tensor, *, is_coarse: bool = False) -> Tensor:
    """Fit the scene and the noise behind a spectrum under each of C kernels; give the misfits, shape `(C,)`.

    A misfit is minus the logarithm of likelihood times prior, up to a constant. The gains are |H|² of each kernel in
    each cell, shape `(C, n)`. A coarse fit may end before it has converged, to tell hopeless kernels from others.

    Raises:
        MalformedInputError: the picture holds no detail.
    """
    problem, n_steps = _Problem(spectrum), _MOST_COARSE_STEPS if is_coarse else _MOST_STEPS
    return torch.cat([problem.fit(part, n_steps) for part in gains.split(_BATCH)])


class _Problem:
    """What the fits of all kernels to one spectrum share."""

    def __init__(self, spectrum: PolarSpectrum) -> None:
        grid = spectrum.grid
        # Neighboring pieces share half of their pixels, and pixels near their edges count little.
        n_samples = grid.counts * max(1.0, 0.5 * spectrum.n_pieces)
        weights = spectrum.reliance * _TEMPER / (1 / n_samples + _SCENE_VARIANCE)
        used = (weights > 0) & (spectrum.power > _LEAKAGE * spectrum.power.max())
        if not bool(used.any()) or float(spectrum.power.max()) < _NO_DETAIL:
            raise MalformedInputError(
                "the picture holds no detail that shows a blur: it is flat, or compression removed its detail; give "
                "another picture, or the kernel."
            )
        f, self.log_power = grid.frequency[used], spectrum.power[used].clamp_min(1e-300).log()
        self.used, self.weights, self.scene = used, weights[used], scene_basis(grid)[used]
        self.noise = torch.stack([torch.ones_like(f), f - _MIDDLE], 1)
        means, spreads = torch.tensor(_TERMS, dtype=torch.float64).unbind(1)
        highest = self.log_power[f >= f.quantile(0.7)]
        self.means = torch.cat([means, torch.stack([highest.quantile(0.3), highest.new_tensor(_NOISE_SLOPE)])])
        self.precisions = torch.cat([spreads, spreads.new_tensor(_NOISE_SPREAD)]) ** -2
        self.start = self.means.clone()
        low = f <= f.quantile(0.05)
        self.start[0] = (self.log_power - self.scene[:, 1:] @ means[1:])[low].mean()

    def fit(self, gains: Tensor, n_steps: int) -> Tensor:
        log_gains = gains[:, self.used].clamp_min(1e-12).log()
        theta = self.start.repeat(len(gains), 1)
        damping = theta.new_full((len(gains), 1), 1e-3)
        state = self._evaluate(theta, log_gains)
        for _ in range(n_steps):
            trial = theta + self._step(theta, state, damping)
            new = self._evaluate(trial, log_gains)
            is_better = new[0] < state[0]
            decrease = torch.where(is_better, state[0] - new[0], 0.0)
            theta = torch.where(is_better[:, None], trial, theta)
            state = tuple(
                torch.where(is_better.reshape(-1, *[1] * (old.ndim - 1)), n, old)
                for n, old in zip(new, state, strict=True)
            )
            damping = torch.where(is_better[:, None], damping / 5, damping * 8).clamp(1e-8, 1e6)
            if float(decrease.max()) < _CONVERGED and bool((is_better | (damping[:, 0] >= _HOPELESS)).all()):
                break
        return state[0]

    def _evaluate(self, theta: Tensor, log_gains: Tensor) -> tuple[Tensor, ...]:
        """Give the misfit, the share of the scene in each cell's power, and the ratio of measured to fitted power."""
        n = self.scene.shape[1]
        scene = theta[:, :n] @ self.scene.T + log_gains
        noise = theta[:, n:] @ self.noise.T
        excess = self.log_power - torch.logaddexp(scene, noise)
        ratio = excess.clamp(max=30).exp()
        misfit = (self.weights * (ratio - excess - 1)).sum(1)
        misfit = misfit + 0.5 * (self.precisions * (theta - self.means).square()).sum(1)
        return misfit, torch.sigmoid(scene - noise), ratio

    def _step(self, theta: Tensor, state: tuple[Tensor, ...], damping: Tensor) -> Tensor:
        _, share, ratio = state
        slopes = torch.cat([share[:, :, None] * self.scene, (1 - share)[:, :, None] * self.noise], 2)
        ascent = torch.einsum("cb,cbk->ck", self.weights * (ratio - 1), slopes)
        ascent = ascent - self.precisions * (theta - self.means)
        curvature = self.weights * (0.5 + 0.5 * ratio.clamp(max=4))
        matrix = torch.einsum("cbk,cb,cbl->ckl", slopes, curvature, slopes) + self.precisions.diag()
        matrix = matrix + torch.diag_embed(damping * matrix.diagonal(dim1=1, dim2=2))
        # torch's batched LU is unreliable with several threads; the matrix is symmetric and positive definite anyway.
        return torch.cholesky_solve(ascent[:, :, None], torch.linalg.cholesky(matrix))[:, :, 0]
