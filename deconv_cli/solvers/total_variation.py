"""Total variation: min ½‖Ax − y‖² + w·TV(x), by ADMM (`admm.py`) with an inverse of AᴴA + ρ∇ᴴ∇ under the true border.

TV(x) is isotropic, and separate for each channel: the sum over all pixels of |∇x|, by forward differences between
pixels of the image, divided by their distances if these differ between axes (Rudin, Osher and Fatemi, Nonlinear total
variation based noise removal algorithms, Physica D 60, 1992).
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from deconv_cli.errors import UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators import synchronize
from deconv_cli.operators.convolution import Convolution
from deconv_cli.regularizers import is_determined, spaced_penalty
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.admm import DEFAULT_CHANGE, DEFAULT_TOLERANCE, DEFAULT_TOLERANCE_OF_SIGNALS, Admm
from deconv_cli.solvers.estimator import DataEstimate, Estimator, Prior, common_unit
from deconv_cli.solvers.fourier import SingularSystemError
from deconv_cli.solvers.inverse import Inverse
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.solution import IterationLog, Progress, Solution, Status, StoppingRule
from deconv_cli.solvers.solver import Choice, find_solver, refusal_of
from deconv_cli.vocabulary import Size

# Accuracy of an inverse in one step, relative to the remaining residual, and its largest number of iterations.
INNER_RULE = StoppingRule(tolerance=0.3, max_iterations=200)
# The search for a weight: accuracy of intermediate estimates and their largest last change, relative accuracy of
# ‖Ax − y‖², number of trials.
SEARCH_TOLERANCES, SEARCH_CHANGE = (1e-3, 2e-2), 2e-3
SEARCH_ACCURACY = 0.01
MAX_TRIALS = 20
# An image that keeps less than this part of its differences is flat.
FLATNESS = 1e-3
# Least ratio between the noise and the rounding error of the samples.
MIN_NOISE = 10.0
# Images with the channels of the input that the iteration keeps beside those of an inverse: as such, and for each axis
# of space.
N_IMAGES, N_FIELDS = 4, 5
# Solvers that build the inverse of each step, the first that covers it: those that are cheap to build.
INNER_METHODS = ("fft", "dct", "strip", "slab", "iterative", "varying")


class TotalVariation(Prior):
    """Images that are flat except at their edges."""

    def needs(self, settings: ResolvedSettings) -> DataEstimate | None:
        """Ask for the weight, unless it or the noise is given."""
        is_open = settings.weight in (None, "auto") and settings.noise_sigma is None
        return "weight" if is_open else None

    def build(
        self, kernel: Kernel, image_size: Size, settings: ResolvedSettings, estimate: float | Tensor | None = None
    ) -> Estimator:
        """Build the estimator, for a weight or for the noise."""
        assert not isinstance(estimate, Tensor)
        weight = estimate if settings.weight in (None, "auto") else float(settings.weight)
        return TotalVariationEstimator(kernel, image_size, settings, weight=weight, noise=settings.noise_sigma)


TOTAL_VARIATION = TotalVariation()


class TotalVariationEstimator(Estimator):
    """Estimates images that are flat except at their edges.

    The certificate is the larger of two numbers, computed from the estimate x and a field p that is nowhere longer than
    w: the gap w·TV(x) − ⟨p, ∇x⟩ relative to the objective plus w·Σ|x|/1000, and the stationarity ‖Aᴴ(Ax − y) + ∇ᴴp‖
    relative to ‖∇ᴴp‖ + ‖Aᴴy‖/1000. Both are zero if and only if x is a minimum x*; the objective exceeds that minimum
    by at most the gap plus ‖Aᴴ(Ax − y) + ∇ᴴp‖·‖x − x*‖.

    Args:
        kernel: canonical kernel, in the dtype and on the device of the arithmetic.
        image_size: size of the images to estimate.
        settings: padding, boundary, tolerance, iterations and memory. By default the iteration ends when a step changes
            the estimate by less than 1.2e-2 of its contrast and the certificate is at most 7e-2, or 1e-2 for
            signals.
        weight: w > 0, in the unit of the samples; `None` finds one weight for a whole batch, for which ‖Ax − y‖² equals
            that of the noise (Morozov's discrepancy principle); this fails if the noise estimate is too small.
        noise: standard deviation of the noise in the data; needed without a weight.

    Raises:
        UsageError: a weight that is not positive, a method chosen by hand, or fewer outputs than inputs.
        ShapeError: the kernel does not fit the size.
        TooLargeError: it does not fit the memory.
    """

    def __init__(
        self,
        kernel: Kernel,
        image_size: Size,
        settings: ResolvedSettings,
        *,
        weight: float | None,
        noise: float | None = None,
    ) -> None:
        super().__init__(kernel, image_size, settings)
        _check(self.operator, settings, weight, noise)
        self.weight, self.noise = weight, noise
        reason = "the alternating direction method of multipliers uses it"
        if weight is None:
            reason += f", and the weight leaves noise of standard deviation {noise:.3g} unexplained"
        # Which solver covers it, and at what cost, does not depend on the λ of the steps, as long as that is positive.
        penalty = spaced_penalty("gradient", settings.spacing)
        self._problem = problem = TikhonovProblem(self.operator, 1.0, self.spectrum.sigma_max, penalty)
        method = next(name for name in INNER_METHODS if refusal_of(name, problem) is None)
        self.choice = Choice(method, reason)
        default = DEFAULT_TOLERANCE if kernel.n_axes > 1 else DEFAULT_TOLERANCE_OF_SIGNALS
        self.tolerance = default if settings.tolerance is None else settings.tolerance
        cost, n_images = find_solver(method).cost(problem), N_IMAGES + N_FIELDS * len(image_size)
        extra = n_images * kernel.taps.itemsize * math.prod(self.operator.input_shape)
        self.cost = replace(cost, n_bytes_per_image=cost.n_bytes_per_image + extra)
        self.check_memory(self.cost)

    def solve(self, y: Tensor, progress: Progress | None = None) -> Solution:
        """Solve for data `y` of shape `(C_out, *output_size)`, or a batch of them; see `Estimator.solve`.

        Raises:
            UsageError: no weight was given, and the data have no noise to derive it from.
        """
        data = self.data_of(y)
        self.check_memory(self.cost, self.n_images(data))
        unit = common_unit(data)
        if self.noise is not None and self.weight is None:
            check_noise(data, self.noise)
        admm = Admm(self.inverse, self._problem, data / unit)
        log = IterationLog(StoppingRule(self.tolerance, self.settings.max_iterations), progress)
        change = DEFAULT_CHANGE if self.settings.tolerance is None else math.inf
        explains_noise, n_steps = True, self.settings.iterations
        if self.weight is not None:
            weight = self.weight / unit
        else:
            weight, explains_noise = self._search(admm, log, change, unit)
        if not explains_noise:
            status = Status.NOISE_NOT_REACHED
        elif n_steps is None:
            status = admm.run(weight, self.tolerance, log, change)
        else:
            status = admm.take(weight, n_steps, log)
        is_known = status is Status.CONVERGED
        certificate = log.history[-1] if is_known else synchronize.as_number(admm.certificate(weight).max())
        weight *= unit
        return Solution(
            unit * admm.x,
            status,
            log.n_iterations,
            certificate,
            tuple(log.history),
            f"½‖Ax − y‖² + {weight:.4g}·TV(x)",
            weight,
        )

    def inverse(self, rho: float) -> Inverse:
        """Build (AᴴA + ρ∇ᴴ∇)⁻¹ with the solver that is cheapest to build."""
        problem = replace(self._problem, lam=rho / self.spectrum.sigma_max**2)
        try:
            return find_solver(self.choice.method).build(problem, INNER_RULE)
        except SingularSystemError as error:
            self.choice = Choice("iterative", f"method {self.choice.method} cannot be used, since {error}")
        return find_solver("iterative").build(problem, INNER_RULE)

    def _search(self, admm: Admm, log: IterationLog, change: float, unit: float) -> tuple[float, bool]:
        """Find the weight for which the residual is as large as the noise, by a bracketed secant in logarithms.

        Returns:
            The weight, and whether the residual is as large as the noise there.
        """
        assert self.noise is not None
        variance = (self.noise / unit) ** 2
        admm.start_from_estimate()
        start = admm.roughness
        weight = variance / max(start, variance**0.5)
        expected = variance * admm.y.numel()
        tolerance = min(max(self.tolerance, SEARCH_TOLERANCES[0]), SEARCH_TOLERANCES[1])
        below, above = -math.inf, math.inf
        previous: tuple[float, float] | None = None
        for _ in range(MAX_TRIALS):
            admm.run(weight, tolerance, log, min(change, SEARCH_CHANGE))
            place, excess = math.log(weight), math.log(max(admm.squared_residual, 1e-300) / expected)
            if abs(excess) <= SEARCH_ACCURACY or log.is_spent:
                return weight, True
            if excess < 0 and admm.roughness <= FLATNESS * start:
                return weight, True  # even a flat image explains the data
            below, above = (below, place) if excess > 0 else (place, above)
            slope = 0.7 if previous is None else (excess - previous[1]) / (place - previous[0])
            step = -excess / min(max(slope, 0.2), 2.0)
            following = place + min(max(step, -3.0), 3.0)
            if not below < following < above:
                following = (below + above) / 2
            previous, weight = (place, excess), math.exp(following)
        return weight, False


def _check(operator: Convolution, settings: ResolvedSettings, weight: float | None, noise: float | None) -> None:
    n_outputs, n_inputs = operator.output_shape[0], operator.input_shape[0]
    if settings.method != "auto":
        raise UsageError(f"prior tv chooses its own solver, but method {settings.method} was given; leave it out.")
    if not is_determined(1.0, "gradient", n_outputs, n_inputs):
        raise UsageError(
            f"prior tv leaves constant images undetermined if a kernel has fewer outputs ({n_outputs}) than inputs "
            f"({n_inputs}); use prior quadratic with penalty identity."
        )
    if weight is not None and not 0 < weight < math.inf:
        raise UsageError(f"the weight of the total variation must be a positive number, but is {weight}.")
    if weight is None and noise is None:
        raise UsageError("prior tv needs a weight, or the noise to derive it from; give one of them.")


def check_noise(data: Tensor, noise: float) -> None:
    """Refuse to derive a weight from noise that is not larger than the rounding error."""
    rounding = torch.finfo(data.dtype).eps * synchronize.as_number(data.square().mean().sqrt())
    if not MIN_NOISE * rounding < noise < math.inf:
        raise UsageError(
            "the weight of the total variation cannot follow from the noise, since no noise was found in the data; "
            "give a weight."
        )
