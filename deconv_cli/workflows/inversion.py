"""Data inverted whose channels go together: choose λ → build → solve → measure → predict."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from deconv_cli.diagnostics.clipped_samples import LEAST_SHARE, find_clipped
from deconv_cli.diagnostics.lambda_choice import LambdaChoice
from deconv_cli.errors import DeconvError, ShapeError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.kernels.kernel_field import KernelField
from deconv_cli.operators import synchronize
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.clipped import CLOSE_TOLERANCE, DEFAULT_TOLERANCE, solve_clipped
from deconv_cli.solvers.estimator import Estimator
from deconv_cli.solvers.photo_prior import PhotoEstimator
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.solution import StoppingRule
from deconv_cli.vocabulary import ROUNDING_NOISE, InputKind, Size, format_size
from deconv_cli.workflows.apply_kernel import subtract_bias
from deconv_cli.workflows.arithmetic import as_any_kernel, pick_dtype
from deconv_cli.workflows.built_inverses import BuiltInverses
from deconv_cli.workflows.clipped_filling import fill_clipped, fill_tiles
from deconv_cli.workflows.diagnose import Diagnosis, diagnose
from deconv_cli.workflows.estimators import build_estimator
from deconv_cli.workflows.find_noise import find_noise
from deconv_cli.workflows.lambda_of_data import choose_lambda_of_data
from deconv_cli.workflows.predict import predict_by_restoring_again, predict_for
from deconv_cli.workflows.progress_listener import ProgressListener, as_listener
from deconv_cli.workflows.reconstruction import Reconstruction
from deconv_cli.workflows.resolution import Resolution
from deconv_cli.workflows.solved import Solved
from deconv_cli.workflows.trust import EXPLAINED, PLAUSIBLE, WRONG_LAYER

LEAST_LAMBDA = 1e-3
"""λ of the inverse that examines an estimate which is not linear in the data, where no λ was chosen from them."""
EIGHT_BITS = 255
"""White of samples whose rounding and compression are no small part of the noise, and differ with the light."""

Steps = tuple[float, ...]
"""Distance of neighboring values that a sample can have, one for all channels or for each."""

Measure = Callable[[], Reconstruction]
"""Looks at an estimate, and gives it with what was found."""


class Inversion:
    """Inverts one batch of data after another, and keeps the inverses that it built last.

    Args:
        kernel: the taps of all channels that go together.
        dimensions: axes of space of the data, where the kernel's do not tell.
        bias: subtracted from each output channel first, shape `(C_out,)`.
        inverse: one that was built before, and takes the place of the settings that made it.

    Attributes:
        inverse: the linear inverse that was applied last; `None` before the first, and where estimates are not linear.
    """

    def __init__(
        self,
        kernel: Tensor | KernelField,
        dimensions: int | None,
        *,
        bias: Tensor | None = None,
        inverse: PseudoInverse | None = None,
    ) -> None:
        self._kernel, self._dimensions, self._bias = kernel, dimensions, bias
        self._given = self.inverse = inverse
        self._built = BuiltInverses()

    def begin(
        self, y: Tensor, resolution: Resolution, steps: Steps, truth: Tensor | None, listener: ProgressListener
    ) -> Measure:
        """Estimate the images; what this gives measures them.

        Args:
            y: shape `(C_out, *output_size)` or `(B, C_out, *output_size)`, in what the convolution acts in.
            resolution: how, for all channels alike.
            steps: distance of neighboring values that a sample of each channel can have.
            truth: the images themselves, as `y`.
            listener: is notified how far it is.
        """
        data, kernel, image_size = self._arranged(y, resolution.settings)
        step = math.hypot(*steps) / math.sqrt(len(steps))
        least_noise = step * ROUNDING_NOISE  # what rounding leaves
        if truth is not None:
            axis = kernel.channel_axis
            check_truth(truth, (*data.shape[:axis], kernel.n_inputs(data.shape[axis])), image_size)
        filled, is_clipped = data, find_bounds(data, kernel, resolution)
        if resolution.chooses_lambda or not resolution.settings.is_linear or resolution.settings.noise != "auto":
            # else it is for the tests of the residual alone
            resolution, filled = self._with_noise(resolution, data, kernel, is_clipped)
        choice = None
        if resolution.chooses_lambda:
            listener.begin("choosing λ")
            unbiased = subtract_bias(data.detach(), self._bias, kernel.n_axes).detach()
            is_even = resolution.tone_curve is None or resolution.tone_curve.white > EIGHT_BITS
            choice = choose_lambda_of_data(
                unbiased, kernel, resolution.settings, least_noise, is_clipped, is_noise_even=is_even
            )
            resolution = _with_choice(resolution, choice)
        settings = resolution.settings
        listener.begin("building the inverse")
        estimator: Estimator
        if settings.is_linear:
            estimator = self._linear(kernel, image_size, settings, is_of_these_data=choice is not None)
        else:
            self.inverse = None
            estimator = build_estimator(kernel, image_size, settings, filled, resolution.tone_curve)
        if isinstance(estimator, PseudoInverse) and estimator.problem.lam == 0:
            is_clipped = None
        tolerance = estimator.tolerance
        if is_clipped is not None and isinstance(estimator, PseudoInverse):
            tolerance = settings.tolerance or (CLOSE_TOLERANCE if resolution.has_bounds else DEFAULT_TOLERANCE)
        listener.begin("restoring", goal=tolerance, limit=settings.max_iterations)
        full = None if is_clipped is None else (is_clipped, filled)
        solved = self._solve(estimator, data, resolution, full, choice, step, tolerance, listener)

        def finish() -> Reconstruction:
            listener.begin("measuring the residual")
            result = solved.measure()
            if any(doubt.reason in WRONG_LAYER for doubt in result.doubts):
                result = replace(result, explained_by=self._explanation(estimator, data, resolution))
            if not settings.predict:
                return result
            listener.begin("predicting the error")
            if not isinstance(estimator, PseudoInverse):
                curve = resolution.tone_curve
                predicted = predict_by_restoring_again(
                    estimator, result, solved.data, curve, least_sigma=least_noise, truth=truth
                )
                return replace(result, predicted_error=predicted)
            inverse = self._framed(estimator, data, resolution)
            predicted = predict_for(
                inverse,
                result,
                data,
                bias=self._bias,
                least_sigma=least_noise,
                truth=truth,
                n_pieces=resolution.n_pieces,
            )
            return replace(result, predicted_error=predicted)

        return finish

    def _explanation(self, estimator: Estimator, data: Tensor, resolution: Resolution) -> str | None:
        """Return the padding that explains data of a layer which the given one does not; `None` if there is none."""
        kernel, settings = estimator.kernel, replace(resolution.settings, padding="valid", predict=False)
        is_open = (
            settings.lam > 0
            and resolution.settings.padding != "valid"
            and kernel.field is None
            and not estimator.operator.is_layer
        )
        if not is_open or settings.defaults is not InputKind.TENSOR:
            return None
        geometry = kernel.geometry_of_output(tuple(data.shape[-kernel.n_axes :]), "valid", None)
        with contextlib.suppress(DeconvError):
            inverse = self._found(kernel, geometry.image_size, settings)
            other = replace(resolution, settings=settings, is_tested=False)
            solved = self._solve(inverse, data, other, None, None, 0.0, inverse.tolerance, as_listener(None))
            scale = solved.measure().scale
            if scale.missing < EXPLAINED and scale.amplification < PLAUSIBLE:
                return 'padding="valid"'
        return None

    def diagnose(self, result: Reconstruction, y: Tensor) -> Diagnosis:
        """Examine what was estimated last from the data `y`.

        An estimate that is not linear in them is examined as one of the inverse that tested its kernel, but for its own
        residual.
        """
        data, inverse, quadratic = y.to(result.image.dtype), self.inverse, result.quadratic
        if inverse is None:
            lam = LEAST_LAMBDA if quadratic is None else quadratic.settings.lam
            settings = replace(result.settings, prior="quadratic", strength=None, predict=False, seed=None, lam=lam)
            _, kernel, size = self._arranged(y, settings)
            inverse = self._found(kernel, size, settings)
        found = diagnose(inverse, result, data, bias=self._bias, noise=result.settings.noise_sigma)
        tests = None if quadratic is None else quadratic.residual_tests
        return found if tests is None else replace(found, tests=replace(found.tests, finding=tests.finding))

    def _arranged(self, y: Tensor, settings: ResolvedSettings) -> tuple[Tensor, Kernel, Size]:
        """Convert data and kernel to the precision of the arithmetic; return the size of the images too."""
        if self._given is not None:
            taps = self._given.kernel.taps
            data = y.to(taps.device, taps.dtype)
            _check_size(data, self._given)
            self._given.arrange(data)
            return data, self._given.kernel, self._given.geometry.image_size
        dtype = pick_dtype(settings.dtype, y, y.device)
        kernel = as_any_kernel(self._kernel, y.device, dtype, self._dimensions).with_layer(settings.layer)
        kernel.split(y, are_outputs=True)  # what does not fit is refused before anything is built
        size = tuple(y.shape[-kernel.n_axes :])
        geometry = kernel.geometry_of_output(size, settings.padding, settings.input_size)
        return y.to(dtype), kernel, geometry.image_size

    def _with_noise(
        self, resolution: Resolution, data: Tensor, kernel: Kernel, is_clipped: Tensor | None
    ) -> tuple[Resolution, Tensor]:
        """Find out what kind of noise the data have, where the settings leave it open.

        Returns:
            The resolution; and the data without the bias, where full samples were filled in, if they hid the noise.
        """
        settings = resolution.settings
        unbiased = subtract_bias(data, self._bias, kernel.n_axes)
        if is_clipped is not None and settings.objective == "photo":
            filled = fill_tiles(unbiased, kernel, is_clipped, settings.origin)
            share = synchronize.as_number((filled == unbiased).double().mean())
        else:
            filled, share = fill_clipped(unbiased, kernel, settings, is_clipped if settings.noise == "auto" else None)
        found = find_noise(filled, kernel, settings, observed_share=share)
        return replace(resolution, settings=replace(settings, noise=found)), filled

    def _linear(
        self, kernel: Kernel, image_size: Size, settings: ResolvedSettings, *, is_of_these_data: bool
    ) -> PseudoInverse:
        """Build an inverse, or take one that was built before; none where λ is of these data."""
        if self._given is not None:
            return self._given
        self.inverse = None  # where it is not kept, its memory first
        if is_of_these_data:
            inverse = PseudoInverse(kernel, image_size, replace(settings, noise=None))
        else:
            inverse = self._found(kernel, image_size, settings)
        self.inverse = inverse
        return inverse

    def _found(self, kernel: Kernel, image_size: Size, settings: ResolvedSettings) -> PseudoInverse:
        """Find an inverse among those that were built, or build it."""
        settings = replace(settings, noise=None)  # an inverse is the same for all noise
        key = (image_size, settings, kernel.taps.dtype, kernel.taps.device)
        return self._built.find(key, lambda: PseudoInverse(kernel, image_size, settings))

    def _framed(self, inverse: PseudoInverse, data: Tensor, resolution: Resolution) -> PseudoInverse:
        """Give an inverse whose errors are those at the frame of the picture that the data are a part of."""
        if resolution.frame is None:
            return inverse
        boundary, padding = resolution.frame
        kernel, settings = inverse.kernel, replace(resolution.settings, boundary=boundary, padding=padding)
        size = tuple(data.shape[-kernel.n_axes :])
        return self._found(kernel, kernel.geometry_of_output(size, padding, None).image_size, settings)

    def _solve(
        self,
        estimator: Estimator,
        data: Tensor,
        resolution: Resolution,
        full: tuple[Tensor, Tensor] | None,
        choice: LambdaChoice | None,
        step: float,
        tolerance: float,
        listener: ProgressListener,
    ) -> Solved:
        """Apply an estimator; `full` says which samples are full, and gives the data with those filled in."""
        estimator.arrange(data)  # a kernel that does not fit is refused before a bias that does not
        unbiased = subtract_bias(data, self._bias, estimator.kernel.n_axes)
        is_clipped = None if full is None else estimator.arrange(full[0].to(data.dtype)) > 0
        if isinstance(estimator, PhotoEstimator):
            solution = estimator.solve(unbiased if full is None else full[1], listener, is_clipped)
        elif is_clipped is None:
            solution = estimator.solve(unbiased, listener)
        else:
            assert isinstance(estimator, PseudoInverse)
            rule = StoppingRule(tolerance, resolution.settings.max_iterations)
            solution = solve_clipped(estimator.problem, estimator.arrange(unbiased), is_clipped, rule, listener)
        return Solved(estimator, unbiased, resolution, solution, tolerance, choice, step, is_clipped)


def find_bounds(data: Tensor, kernel: Kernel, resolution: Resolution) -> Tensor | None:
    """Find samples that are full, and so are bounds, where estimates take account of them."""
    if resolution.ceiling is None or resolution.has_bounds is False:
        return None
    if not kernel.layer.is_plain or not resolution.settings.takes_bounds:
        return None
    if torch.is_grad_enabled() and (data.requires_grad or kernel.taps.requires_grad):
        return None
    least_share = 0.0 if resolution.has_bounds else LEAST_SHARE
    return find_clipped(data, resolution.ceiling, kernel.size, least_share)


def _with_choice(resolution: Resolution, choice: LambdaChoice) -> Resolution:
    settings = replace(resolution.settings, lam=choice.lam)
    reasons = replace(resolution.reasons, lam=choice.reason)
    return replace(resolution, settings=settings, reasons=reasons, chooses_lambda=False)


def _check_size(data: Tensor, inverse: PseudoInverse) -> None:
    """Refuse data of another size than an inverse was built for."""
    expected, size = inverse.geometry.output_size, inverse.geometry.image_size
    if tuple(data.shape[-len(expected) :]) != expected:
        raise ShapeError(
            f"the factor takes outputs of {format_size(expected)}, but the data are "
            f"{format_size(data.shape[-len(expected) :])}; use "
            f'one that was made for them: this one was made with input_size="{",".join(map(str, size))}".'
        )


def check_truth(truth: Tensor, channels: Size, image_size: Size) -> None:
    """Refuse a truth of another shape than the estimate: batch and channels, and the size of the image."""
    expected = (*channels, *image_size)
    if tuple(truth.shape) != expected:
        raise ShapeError(
            f"the truth should have the shape of the estimate, {format_size(image_size)} pixels or {expected} in all, "
            f"but has {format_size(truth.shape[-len(image_size) :])} pixels or {tuple(truth.shape)}; "
            "crop it to the same frame."
        )
