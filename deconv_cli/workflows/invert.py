"""Undo a convolution, and measure how far the result is to be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from deconv_cli.diagnostics.lambda_choice import LambdaChoice, choose_lambda
from deconv_cli.diagnostics.residual import BorderBand, ResidualSummary, border_profile, summarize_residual
from deconv_cli.diagnostics.uncertainty import PredictedError
from deconv_cli.diagnostics.well_posedness import WellPosedness, assess
from deconv_cli.errors import UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators.geometry import Geometry
from deconv_cli.operators.spectrum import Spectrum
from deconv_cli.parts import BOUNDARIES, PENALTIES, method_names, prior_names
from deconv_cli.settings import MAX_ITERATIONS, ResolvedSettings
from deconv_cli.solvers.choice import Choice
from deconv_cli.solvers.estimator import Estimator
from deconv_cli.solvers.iteration_log import Progress
from deconv_cli.solvers.nonnegative import NonnegativeEstimator
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.solution import Solution
from deconv_cli.vocabulary import LambdaRule, PaddingLike, Size, check_name, parse_word
from deconv_cli.workflows.arithmetic import as_kernel, as_size, check_image, check_tensor, pick_dtype
from deconv_cli.workflows.estimators import Wishes, build_estimator
from deconv_cli.workflows.forward import as_bias
from deconv_cli.workflows.predict import predict_for

DEFAULT_LAMBDA = 1e-6
"""Small enough for data that carry float32's digits; photographs want more."""

_ASSESSED: WeakKeyDictionary[PseudoInverse, WellPosedness] = WeakKeyDictionary()


@dataclass(frozen=True)
class Reconstruction:
    """An estimate, how it was obtained, and what speaks for it.

    Attributes:
        image: the estimate, shape `(C_in, H, W)` or `(B, C_in, H, W)`; differentiable once in data, bias and kernel.
        solution: how the solve ended, and what was minimized; its value may reach beyond the frame.
        choice: the method that ran, and why.
        boundary: what was taken to lie outside the image.
        padding: how far the kernel reached outside.
        lam: λ, dimensionless; `None` where there is no quadratic penalty.
        penalty: the operator L in λσ²max‖Lx‖²; `None` where there is none.
        rcond: singular values up to this fraction of the largest were dropped; `None` where nothing was truncated.
        tolerance: the certificate that an iteration had to reach.
        residual: y − Ax̂ in numbers.
        border: the residual by distance from the edge; the last band gathers all that is deeper.
        spectrum: the extreme singular values of the kernel.
        well_posedness: what the border does to the problem, found before it was solved; `None` where there is no
            quadratic penalty.
        lambda_choice: how λ was chosen from the data; `None` where it was given.
        predicted_error: how wrong the estimate is likely to be; `None` where nobody asked.
    """

    image: Tensor
    solution: Solution
    choice: Choice
    boundary: str
    padding: PaddingLike
    lam: float | None
    penalty: str | None
    rcond: float | None
    tolerance: float
    residual: ResidualSummary
    border: tuple[BorderBand, ...]
    spectrum: Spectrum
    well_posedness: WellPosedness | None
    lambda_choice: LambdaChoice | None = None
    predicted_error: PredictedError | None = None

    def raise_for_status(self) -> Reconstruction:
        """Return the reconstruction itself, if the solver reached what was asked for.

        Raises:
            UntrustworthyResultError: it did not.
        """
        self.solution.raise_for_status()
        return self


def invert(
    y: Tensor,
    kernel: Tensor,
    *,
    padding: PaddingLike = "same",
    boundary: str = "zero",
    lam: float | Literal["auto"] | None = None,
    lambda_rule: LambdaRule | str = LambdaRule.GCV,
    noise_sigma: float | None = None,
    penalty: str | None = None,
    nonnegative: bool = False,
    prior: str = "quadratic",
    weight: float | Literal["auto"] | None = None,
    gain: float | Literal["auto"] | None = None,
    rcond: float | None = None,
    bias: Tensor | None = None,
    method: str = "auto",
    tolerance: float | None = None,
    max_iterations: int = MAX_ITERATIONS,
    max_memory: int | None = None,
    dtype: torch.dtype | str | None = None,
    predict: bool = False,
    truth: Tensor | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Reconstruction:
    """Estimate the images x that a convolution turned into `y`: min ‖Ax − y‖² + λσ²max‖Lx‖², or what is wished for.

    Args:
        y: shape `(C_out, H_y, W_y)` or `(B, C_out, H_y, W_y)`.
        kernel: the taps that made `y`, as for `forward`.
        padding: how far the kernel reached outside the image.
        boundary: what lay there; `unknown` estimates those pixels too, and crops the estimate to the frame that
            `padding` gives.
        lam: λ ≥ 0, in units of the largest squared singular value; 0 for the Moore–Penrose solution, `auto` to choose
            it from the data; by default 1e-6.
        lambda_rule: how `auto` chooses: `gcv`, `ml`, `discrepancy`, `upre`, `lcurve` or `whiteness`.
        noise_sigma: standard deviation of the noise, in units of the samples; by default it is estimated.
        penalty: `identity`, the default, `gradient` or `laplacian`.
        nonnegative: look for the minimum among images without negative pixels; λ must be above 0.
        prior: `quadratic`, or `tv` to minimize ½‖Ax − y‖² + w·TV(x) instead.
        weight: w of the total variation, in the unit of the samples; `auto`, the default, takes it from the noise.
        gain: for `richardson-lucy`, units of the samples a count, to stop by the noise of counts; `auto` reads it off
            the data. By default samples are held out to find where to stop.
        rcond: for circular boundaries and λ = 0, drop singular values up to this fraction of the largest.
        bias: subtracted from each output channel first, shape `(C_out,)`.
        method: `auto`, `fft`, `strip`, `direct` or `iterative`; or `richardson-lucy` for the likeliest nonnegative
            image under Poisson noise, stopped before it follows the noise.
        tolerance: the certificate at which an iteration stops.
        max_iterations: iterations at most.
        max_memory: bytes that the inverse may take; by default what is free.
        dtype: precision of the arithmetic; by default float64 for float64 data, else float32.
        predict: also predict the error of every pixel.
        truth: the images themselves, to hold that prediction against; of the shape of the estimate.
        seed: of the random numbers that the prediction draws.
        progress: told of every iteration.

    Raises:
        ShapeError: kernel, bias and data do not fit one another.
        UsageError: settings that are unknown or contradict one another.
        TooLargeError: the inverse does not fit the memory.
        MalformedInputError: data or kernels that are not finite.
    """
    wishes = Wishes(nonnegative, check_name(prior_names(), prior, "prior"), weight, gain, noise_sigma)
    how = check_name(method_names(), method, "method")
    chosen = None if penalty is None else PENALTIES.check(penalty)
    wishes.check(how, lam=lam, penalty=chosen, rcond=rcond)
    settings = ResolvedSettings(
        padding=padding,
        boundary=BOUNDARIES.check(boundary),
        lam=DEFAULT_LAMBDA if lam is None else 0.0 if lam == "auto" else lam,
        penalty=chosen or "identity",
        rcond=rcond,
        method=how,
        tolerance=tolerance,
        max_iterations=max_iterations,
        max_memory=max_memory,
    )
    wishes.check_prediction(how, is_asked_for=predict or truth is not None)
    choice = None
    if lam == "auto":
        rule = parse_word(LambdaRule, lambda_rule, "lambda_rule")
        choice = choose_for_output(y, kernel, settings, rule, noise_sigma, bias=bias, dtype=dtype)
        settings = replace(settings, lam=choice.lam)
    estimator = estimator_for_output(y, kernel, settings, wishes, bias, dtype)
    data = y.to(estimator.kernel.taps.dtype)
    result = reconstruct(estimator, data, bias=bias, progress=progress)
    predicted = None
    if isinstance(estimator, PseudoInverse) and (predict or truth is not None):
        predicted = predict_for(estimator, result, data, bias=bias, noise_sigma=noise_sigma, truth=truth, seed=seed)
    return replace(result, lambda_choice=choice, predicted_error=predicted)


def choose_for_output(
    y: Tensor,
    kernel: Tensor,
    settings: ResolvedSettings,
    rule: LambdaRule = LambdaRule.GCV,
    noise_sigma: float | None = None,
    *,
    least_sigma: float = 0.0,
    bias: Tensor | None = None,
    dtype: torch.dtype | str | None = None,
) -> LambdaChoice:
    """Choose λ for an output as `invert` does; the λ of `settings` is not looked at.

    Raises:
        UsageError: λ has no place in these settings, or the noise is no positive number.
        ShapeError: kernel, bias and data do not fit one another.
    """
    if settings.rcond is not None:
        raise UsageError("rcond truncates in place of λ, so λ cannot be chosen from the data beside it; leave one out.")
    if noise_sigma is not None and not 0 < noise_sigma < math.inf:
        raise UsageError(f"noise_sigma must be a positive number, but is {noise_sigma}.")
    check_image(y, "the output to invert")
    precision = pick_dtype(dtype, y, y.device)
    canonical = as_kernel(kernel.detach(), y.device, precision)
    data = y.detach().to(precision)
    return choose_lambda(
        data if bias is None else data - as_bias(bias.detach(), data),
        canonical,
        boundary=settings.boundary,
        penalty=settings.penalty,
        rule=rule,
        sigma=noise_sigma,
        least_sigma=least_sigma,
        max_memory=settings.max_memory,
    )


def inverse_for_output(
    y: Tensor, kernel: Tensor, settings: ResolvedSettings, dtype: torch.dtype | str | None = None
) -> PseudoInverse:
    """Build the inverse that fits outputs of the size, device and precision of `y`; see `invert`."""
    canonical, geometry, _ = _prepare(y, kernel, settings, dtype)
    return PseudoInverse(canonical, geometry.image_size, settings)


def estimator_for_output(
    y: Tensor,
    kernel: Tensor,
    settings: ResolvedSettings,
    wishes: Wishes,
    bias: Tensor | None = None,
    dtype: torch.dtype | str | None = None,
) -> Estimator:
    """Build what fulfills wishes that were checked for outputs like `y`; see `invert`."""
    canonical, geometry, values = _prepare(y, kernel, settings, dtype)
    unbiased = values if bias is None else values - as_bias(bias, values)
    return build_estimator(canonical, geometry.image_size, settings, wishes, unbiased)


def _prepare(
    y: Tensor, kernel: Tensor, settings: ResolvedSettings, dtype: torch.dtype | str | None
) -> tuple[Kernel, Geometry, Tensor]:
    """Settle precision and sizes; gives the outputs in that precision."""
    check_image(y, "the output to invert")
    precision = pick_dtype(dtype, y, y.device)
    canonical = as_kernel(kernel, y.device, precision)
    canonical.split(y, are_outputs=True)  # what does not fit is told before anything is built
    geometry = Geometry.of_output((y.shape[-2], y.shape[-1]), canonical.size, settings.padding)
    return canonical, geometry, y.to(precision)


def reconstruct(
    inverse: Estimator,
    y: Tensor,
    *,
    bias: Tensor | None = None,
    progress: Progress | None = None,
) -> Reconstruction:
    """Apply an inverse that is built already, and measure the result as `invert` does.

    Args:
        inverse: built for outputs of this size.
        y: shape `(C_out, H_y, W_y)` or `(B, C_out, H_y, W_y)`, in the inverse's dtype.
        bias: subtracted from each output channel first, shape `(C_out,)`.
        progress: told of every iteration.

    Raises:
        ShapeError: `y` or the bias does not fit.
        UsageError: `y` has another dtype or device than the inverse.
    """
    inverse.arrange(y)  # a kernel that does not fit is told before a bias that does not
    well_posedness = _assess(inverse)
    unbiased = y if bias is None else y - as_bias(bias, y)
    solution = inverse.solve(unbiased, progress)
    operator, kernel = inverse.operator, inverse.kernel
    data = unbiased.detach()  # the numbers of the report need no graph
    residual = kernel.join(inverse.arrange(data) - operator.forward(solution.value.detach()))
    return Reconstruction(
        image=inverse.frame(solution.value),
        solution=solution,
        choice=inverse.choice,
        boundary=operator.boundary.name,
        padding=inverse.settings.padding,
        lam=inverse.lam,
        penalty=inverse.penalty,
        rcond=inverse.rcond,
        tolerance=inverse.tolerance,
        residual=summarize_residual(residual, data),
        border=border_profile(residual, kernel.size),
        spectrum=inverse.spectrum,
        well_posedness=well_posedness,
    )


def _assess(estimator: Estimator) -> WellPosedness | None:
    """Judge the quadratic problem behind an estimate, if there is one."""
    if isinstance(estimator, NonnegativeEstimator):
        return assess_well_posedness(estimator.inverse)
    return assess_well_posedness(estimator) if isinstance(estimator, PseudoInverse) else None


def assess_well_posedness(inverse: PseudoInverse) -> WellPosedness:
    """Judge the problem that an inverse solves; once for each inverse, however many outputs it is applied to."""
    found = _ASSESSED.get(inverse)
    if found is None:
        problem = inverse.problem
        found = _ASSESSED[inverse] = assess(
            problem.operator.kernel,
            inverse.geometry,
            problem.operator.boundary,
            lam=problem.lam,
            penalty=problem.penalty,
            spectrum=inverse.spectrum,
        )
    return found


def pseudo_inverse(
    kernel: Tensor,
    *,
    input_size: Size,
    padding: PaddingLike = "same",
    boundary: str = "zero",
    lam: float = 0.0,
    penalty: str = "identity",
    rcond: float | None = None,
    method: str = "auto",
    tolerance: float | None = None,
    max_iterations: int = MAX_ITERATIONS,
    max_memory: int | None = None,
    dtype: torch.dtype | str | None = None,
) -> PseudoInverse:
    """Build the inverse of a convolution once, and apply it to many outputs.

    Args:
        kernel: the taps, as for `forward`; the arithmetic runs on their device.
        input_size: height and width of the images x that are wanted back.
        padding: how far the kernel reached outside the image.
        boundary: what lay there.
        lam: λ ≥ 0; 0 for the Moore–Penrose inverse.
        penalty: `identity`, `gradient` or `laplacian`.
        rcond: for circular boundaries and λ = 0, drop singular values up to this fraction of the largest.
        method: `auto`, `fft`, `strip`, `direct` or `iterative`.
        tolerance: the certificate at which an iteration stops.
        max_iterations: iterations at most.
        max_memory: bytes that the inverse may take; by default what is free.
        dtype: precision of the arithmetic; by default float64 for float64 taps, else float32.

    Raises:
        ShapeError: the kernel does not fit the size.
        UsageError: settings that are unknown or contradict one another.
        TooLargeError: the inverse does not fit the memory.
        MalformedInputError: a kernel that is complex or not finite.
    """
    settings = ResolvedSettings(
        padding=padding,
        boundary=BOUNDARIES.check(boundary),
        lam=lam,
        penalty=PENALTIES.check(penalty),
        rcond=rcond,
        method=check_name(method_names(), method, "method"),
        tolerance=tolerance,
        max_iterations=max_iterations,
        max_memory=max_memory,
    )
    size = as_size(input_size)
    check_tensor(kernel, "the kernel")
    precision = pick_dtype(dtype, kernel, kernel.device)
    return PseudoInverse(as_kernel(kernel, kernel.device, precision), size, settings)
