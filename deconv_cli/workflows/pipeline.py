"""The one pipeline from data to a reconstruction, for the library and the command line alike.

    resolve → undo the tone curve → choose λ → build → solve → measure → predict → do the tone curve again

A pipeline keeps the inverses that it built last: data of the same sizes under one border cost their factors once.
Several threads may reconstruct with one at the same time.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from itertools import cycle

import torch
from torch import Tensor

from deconv_cli.diagnostics.clipped_samples import find_clipped
from deconv_cli.diagnostics.lambda_choice import LambdaChoice
from deconv_cli.errors import ShapeError, UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.kernels.kernel_field import KernelField
from deconv_cli.operators import synchronize
from deconv_cli.sample_range import limits_of, white_of
from deconv_cli.settings import ReconstructionSettings, ResolvedSettings
from deconv_cli.solvers.clipped import DEFAULT_TOLERANCE, solve_clipped
from deconv_cli.solvers.estimator import Estimator
from deconv_cli.solvers.iteration_log import StoppingRule
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.tone_curve import ToneCurve
from deconv_cli.vocabulary import ROUNDING_NOISE, InputKind, Size, format_size
from deconv_cli.workflows.apply_kernel import as_bias, subtract_bias
from deconv_cli.workflows.arithmetic import as_any_kernel, check_image, pick_dtype
from deconv_cli.workflows.built_inverses import BuiltInverses
from deconv_cli.workflows.channels import join_channels
from deconv_cli.workflows.clipped_filling import fill_clipped
from deconv_cli.workflows.diagnose import Diagnosis, diagnose, join_diagnoses
from deconv_cli.workflows.estimators import build_estimator
from deconv_cli.workflows.find_noise import find_noise, find_noise_of_channels
from deconv_cli.workflows.lambda_of_data import choose_lambda_of_data
from deconv_cli.workflows.lambda_series import LambdaView, restore_at_lambdas
from deconv_cli.workflows.planes import Planes, join_planes
from deconv_cli.workflows.predict import predict_for
from deconv_cli.workflows.progress_listener import ProgressListener, as_listener
from deconv_cli.workflows.reconstruction import Reconstruction
from deconv_cli.workflows.resolution import RecordedConvolution, Resolution, resolution_of, resolve
from deconv_cli.workflows.solved import Solved
from deconv_cli.workflows.trust import measure_clipping

EIGHT_BITS = 255
"""White of samples whose rounding and compression are no small part of the noise, and differ with the light."""

Steps = tuple[float, ...]
"""Distance of neighboring values that a sample can have, one for all channels or for each."""

Measure = Callable[[], Reconstruction]
"""Looks at an estimate, and gives it with what was found."""


class Pipeline:
    """Reconstructs one batch of data after another, all made by one kernel.

    Args:
        kernel: the taps as `forward` takes them, of any device and floating dtype: for all channels alike, one for each
            channel, or one that mixes them; or a field of kernels, for all channels alike.
        settings: what was chosen; what is left open is resolved for each input.
        bias: subtracted from each output channel first, shape `(C_out,)`.
        inverse: one that was built before, and takes the place of the settings that made it.

    Attributes:
        inverse: the linear inverse that was applied last; `None` before the first, and where estimates are not linear.

    Raises:
        ShapeError: the kernel has other axes than such kernels have.
        MalformedInputError: the kernel is complex, empty, zero or not finite.
    """

    def __init__(
        self,
        kernel: Tensor | KernelField,
        settings: ReconstructionSettings,
        *,
        bias: Tensor | None = None,
        inverse: PseudoInverse | None = None,
    ) -> None:
        self._kernel = kernel
        self._settings = settings
        self._bias = bias
        self._given = inverse
        self.inverse = inverse
        self._built = BuiltInverses()
        self._channels: list[Pipeline] = []
        self._adding = threading.Lock()

    @property
    def settings(self) -> ReconstructionSettings:
        """What was chosen."""
        return self._settings

    def resolve(
        self,
        recorded: RecordedConvolution | None = None,
        tone_curve: ToneCurve | None = None,
        sample_type: str | None = None,
    ) -> Resolution:
        """Fill in the settings that were left open; nothing is computed yet.

        Args:
            recorded: what the input's file says about the convolution that made it.
            tone_curve: how the input encodes light, where that is known.
            sample_type: of the input's file, by the NumPy name; else told from the tensor, as far as that does.

        Raises:
            UsageError: a setting that would change nothing.
        """
        if self._given is not None:
            found = resolution_of(self._given, self._settings, recorded, tone_curve)
        else:
            found = resolve(self._settings, self._canonical, recorded, tone_curve)
        return replace(found, sample_type=sample_type)

    def reconstruct(
        self,
        y: Tensor,
        resolution: Resolution | None = None,
        *,
        truth: Tensor | None = None,
        progress: Callable[[int, float], None] | None = None,
    ) -> Reconstruction:
        """Estimate the images that the convolution turned into `y`, and measure how good the estimate is.

        Args:
            y: shape `(C_out, *output_size)` or `(B, C_out, *output_size)`, of any real dtype.
            resolution: what `resolve` gave; found anew where it is left out.
            truth: the images themselves, of the shape of the estimate, to compare the predicted error with.
            progress: is called after every iteration.

        Raises:
            ShapeError: kernel, bias, data and truth do not fit one another.
            UsageError: settings that contradict the data.
            TooLargeError: the inverse does not fit the memory.
            MalformedInputError: data or kernels that are not finite.
        """
        return self.begin(y, resolution, truth=truth, progress=progress)()

    def begin(
        self,
        y: Tensor,
        resolution: Resolution | None = None,
        *,
        truth: Tensor | None = None,
        progress: Callable[[int, float], None] | None = None,
    ) -> Measure:
        """Do the part of `reconstruct` that estimates the images; what this gives measures them.

        The pipeline may be given other data before the estimate is measured.
        """
        listener = as_listener(progress)
        resolution = self.resolve() if resolution is None else resolution
        check_image(y, "the output to invert")
        if truth is not None:
            check_image(truth, "the truth")
        planes = self._planes(y)
        if planes is None:
            return self._begin_samples(y, resolution, truth, listener)
        known = None if truth is None else planes.split(truth)
        measure = self._begin_samples(planes.split(y), resolution, known, listener)
        return lambda: join_planes(planes, measure())

    @cached_property
    def _canonical(self) -> Kernel:
        """The kernel in canonical form, checked once."""
        if self._given is not None:
            return self._given.kernel
        return Kernel.of_any(self._kernel, dimensions=self._settings.dimensions)

    def _as_layer(self, settings: ResolvedSettings) -> Kernel:
        """Give the kernel in canonical form, with the stride and the rest that were resolved."""
        return self._canonical.with_layer(settings.layer)

    def _planes(self, y: Tensor) -> Planes | None:
        """Tell how data are taken apart that have more axes than the kernel spans."""
        return Planes.of(y, self._canonical, self._settings.dimensions)

    def _begin_samples(
        self, y: Tensor, resolution: Resolution, truth: Tensor | None, listener: ProgressListener
    ) -> Measure:
        """Do what `begin` does, for data whose axes are those of the kernel."""
        kernel = self._as_layer(resolution.settings)
        n_axes, axis, curve = kernel.n_axes, kernel.channel_axis, resolution.tone_curve
        steps = _steps(y, resolution, n_axes)
        if curve is not None and y.ndim > n_axes:
            n_channels = y.shape[axis]
            curve.check_channels(n_channels if resolution.is_per_channel else kernel.n_inputs(n_channels))
        light = y if curve is None else self._in_light(y, curve, n_axes)
        true_light = truth if truth is None or curve is None else self._in_light(truth, curve, n_axes)
        resolution = replace(resolution, ceiling=_ceiling(y, curve, resolution.sample_type, n_axes))
        measure = self._begin(light, resolution, steps, true_light, listener)

        def finish() -> Reconstruction:
            result = measure()
            is_looked_at = resolution.is_tested and result.settings.defaults is InputKind.PICTURE
            limits = limits_of(y, resolution.sample_type) if is_looked_at else None
            if limits is not None:
                result = replace(result, clipping=measure_clipping(result.image.detach(), light, *limits))
            if curve is None:
                return result
            return replace(result, image=curve.to_stored(result.image, n_axes), tone_curve=curve)

        return finish

    def _in_light(self, stored: Tensor, curve: ToneCurve, n_axes: int) -> Tensor:
        """Undo the tone curve, in the precision of the arithmetic."""
        if self._given is not None:
            return curve.to_light(stored.to(self._given.kernel.taps), n_axes)
        return curve.to_light(stored.to(pick_dtype(self._settings.dtype, stored, stored.device)), n_axes)

    def _begin(
        self, y: Tensor, resolution: Resolution, steps: Steps, truth: Tensor | None, listener: ProgressListener
    ) -> Measure:
        """Do what `begin` does, in the light or the samples that the convolution acts in."""
        if self._is_one_by_one(y, resolution):
            return self._begin_channels(y, resolution, steps, truth, listener)
        data, kernel, image_size = self._arranged(y, resolution.settings)
        step = math.hypot(*steps) / math.sqrt(len(steps))
        least_noise = step * ROUNDING_NOISE  # what rounding leaves
        if truth is not None:
            axis = kernel.channel_axis
            _check_truth(truth, (*data.shape[:axis], kernel.n_inputs(data.shape[axis])), image_size)
        if resolution.settings.noise in (None, "white"):  # full samples are measurements then
            resolution = replace(resolution, ceiling=None)
        is_clipped = _find_bounds(data, kernel, resolution)
        if resolution.chooses_lambda or not resolution.settings.is_linear or resolution.settings.noise != "auto":
            # else it is for the tests of the residual alone
            resolution = self._with_noise(resolution, data, kernel, is_clipped)
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
        estimator = self._estimator(kernel, image_size, settings, data, is_of_these_data=choice is not None)
        listener.begin("restoring", goal=estimator.tolerance, limit=settings.max_iterations)
        solved = self._solve(estimator, data, resolution, is_clipped, choice, step, listener)

        def finish() -> Reconstruction:
            listener.begin("measuring the residual")
            result = solved.measure()
            if not settings.predict or not isinstance(estimator, PseudoInverse):
                return result
            listener.begin("predicting the error")
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

    def diagnose(self, result: Reconstruction, y: Tensor) -> Diagnosis:
        """Examine what `reconstruct` gave last, which was linear in the data.

        Args:
            result: what it gave.
            y: the data that it was applied to.
        """
        planes = self._planes(y)
        if planes is not None:
            found = self._diagnose(replace(result, image=planes.split(result.image)), planes.split(y))
            return replace(found, residual=planes.join(found.residual))
        return self._diagnose(result, y)

    def _diagnose(self, result: Reconstruction, y: Tensor) -> Diagnosis:
        """Do what `diagnose` does, for data whose axes are those of the kernel."""
        n_axes = self._canonical.n_axes
        if result.tone_curve is not None:
            y, image = self._in_light(y, result.tone_curve, n_axes), result.tone_curve.to_light(result.image, n_axes)
            result = replace(result, image=image, tone_curve=None)
        if result.channels:
            one_by_one = zip(
                self._channels[: len(result.channels)], result.channels, y.split(1, dim=-n_axes - 1), strict=True
            )
            return join_diagnoses([pipeline._diagnose(part, data) for pipeline, part, data in one_by_one], n_axes)
        assert self.inverse is not None
        data = y.to(result.image.dtype)
        return diagnose(self.inverse, result, data, bias=self._bias, noise=result.settings.noise_sigma)

    def vary_lambda(self, result: Reconstruction, y: Tensor, sample_type: str | None = None) -> tuple[LambdaView, ...]:
        """Restore a detail of what `reconstruct` gave under other λ too; see `restore_at_lambdas` and `resolve`."""
        kernel, planes = self._canonical, self._planes(y)
        if planes is not None:
            y = planes.split(y)
        ceiling = _ceiling(y, result.tone_curve, sample_type, kernel.n_axes)
        return restore_at_lambdas(kernel, result, y, self._bias, ceiling)

    def _is_one_by_one(self, y: Tensor, resolution: Resolution) -> bool:
        """Return whether each channel has a kernel or a λ of its own."""
        if self._given is not None:
            return False
        kernel = self._canonical
        has_axes = y.ndim in (kernel.n_axes + 1, kernel.n_axes + 2)
        chooses = resolution.chooses_lambda and kernel.shared and has_axes and y.shape[kernel.channel_axis] > 1
        return resolution.is_per_channel or bool(resolution.lams) or chooses

    def _begin_channels(
        self, y: Tensor, resolution: Resolution, steps: Steps, truth: Tensor | None, listener: ProgressListener
    ) -> Measure:
        """Restore one channel after another; their inverses are kept at once, and share the memory."""
        kernel = self._as_layer(resolution.settings)
        kernels = [self._kernel]
        if resolution.is_per_channel:
            kernel = replace(kernel, is_per_channel=True)
            kernels = list(kernel.taps[:, 0])
        self._check_channels(y, kernel, resolution, truth)
        axis, settings = kernel.channel_axis, resolution.settings
        n_channels = y.shape[axis]
        # Kept where a picture in gray comes between those in colors.
        biases = [None] * n_channels if self._bias is None else list(self._bias.split(1))
        own = replace(self._settings, dimensions=kernel.n_axes)
        with self._adding:
            self._channels += [
                Pipeline(kernels[c % len(kernels)], own, bias=biases[c]) for c in range(len(self._channels), n_channels)
            ]
        if settings.max_memory is not None:
            settings = replace(settings, max_memory=max(settings.max_memory // n_channels, 1))
        noises = settings.noise
        if noises == "auto":
            dtype = pick_dtype(settings.dtype, y, y.device)
            own_kernels = [as_any_kernel(taps, y.device, dtype, kernel.n_axes) for taps in kernels]
            filled, shares = zip(
                *(
                    fill_clipped(channel, single, settings, _find_bounds(channel, single, resolution))
                    for channel, single in zip(y.to(dtype).split(1, axis), cycle(own_kernels), strict=False)
                ),
                strict=True,
            )
            noises = find_noise_of_channels(filled, own_kernels, shares)
        parts = []
        for c, pipeline in enumerate(self._channels[:n_channels]):
            lam = resolution.lams[c] if resolution.lams else settings.lam
            noise = noises[c % len(noises)] if isinstance(noises, tuple) else noises
            alone = replace(
                resolution, settings=replace(settings, lam=lam, noise=noise), lams=(), is_per_channel=False, notes=()
            )
            known = None if truth is None else truth.narrow(axis, c, 1)
            parts.append(pipeline._begin(y.narrow(axis, c, 1), alone, (steps[c % len(steps)],), known, listener))
        return lambda: join_channels([measure() for measure in parts], resolution, kernel.n_axes)

    def _check_channels(self, y: Tensor, kernel: Kernel, resolution: Resolution, truth: Tensor | None) -> None:
        """Refuse a kernel, λ, bias or truth that is not there for each channel."""
        if kernel.is_per_channel:
            kernel.check_channels(y)
        else:
            kernel.split(y)
        n_lams, n_channels = len(resolution.lams), y.shape[kernel.channel_axis]
        if n_lams not in (0, n_channels):
            raise UsageError(
                f"λ was given for {n_lams} channels, but the image of shape {tuple(y.shape)} has {n_channels}; give "
                "one for each, or a single one."
            )
        if self._bias is not None:
            as_bias(self._bias, y, kernel.n_axes)
        if truth is not None:
            size = tuple(y.shape[-kernel.n_axes :])
            settings = resolution.settings
            geometry = kernel.geometry_of_output(size, settings.padding, settings.input_size)
            _check_truth(truth, tuple(y.shape[: -kernel.n_axes]), geometry.image_size)

    def _arranged(self, y: Tensor, settings: ResolvedSettings) -> tuple[Tensor, Kernel, Size]:
        """Convert data and kernel to the precision of the arithmetic; return the size of the images too."""
        if self._given is not None:
            taps = self._given.kernel.taps
            data = y.to(taps.device, taps.dtype)
            _check_size(data, self._given)
            self._given.arrange(data)
            return data, self._given.kernel, self._given.geometry.image_size
        dtype = pick_dtype(settings.dtype, y, y.device)
        kernel = as_any_kernel(self._kernel, y.device, dtype, self._settings.dimensions).with_layer(settings.layer)
        kernel.split(y, are_outputs=True)  # what does not fit is refused before anything is built
        size = tuple(y.shape[-kernel.n_axes :])
        geometry = kernel.geometry_of_output(size, settings.padding, settings.input_size)
        return y.to(dtype), kernel, geometry.image_size

    def _with_noise(
        self, resolution: Resolution, data: Tensor, kernel: Kernel, is_clipped: Tensor | None
    ) -> Resolution:
        """Find out what kind of noise the data have, where the settings leave it open."""
        settings = resolution.settings
        unbiased = subtract_bias(data, self._bias, kernel.n_axes)
        filled, share = fill_clipped(unbiased, kernel, settings, is_clipped if settings.noise == "auto" else None)
        found = find_noise(filled, kernel, settings, observed_share=share)
        return replace(resolution, settings=replace(settings, noise=found))

    def _estimator(
        self, kernel: Kernel, image_size: Size, settings: ResolvedSettings, data: Tensor, *, is_of_these_data: bool
    ) -> Estimator:
        """Build what estimates the images, or take an inverse that was built before; none where λ is of these data."""
        if self._given is not None:
            return self._given
        self.inverse = None  # where it is not kept, its memory first
        if not settings.is_linear:
            return build_estimator(kernel, image_size, settings, subtract_bias(data, self._bias, kernel.n_axes))
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
        is_clipped: Tensor | None,
        choice: LambdaChoice | None,
        step: float,
        listener: ProgressListener,
    ) -> Solved:
        """Apply an estimator."""
        estimator.arrange(data)  # a kernel that does not fit is refused before a bias that does not
        unbiased = subtract_bias(data, self._bias, estimator.kernel.n_axes)
        tolerance = estimator.tolerance
        if is_clipped is None or not isinstance(estimator, PseudoInverse) or estimator.problem.lam == 0:
            is_clipped, solution = None, estimator.solve(unbiased, listener)
        else:
            is_clipped = estimator.arrange(is_clipped.to(data.dtype)) > 0
            given = resolution.settings.tolerance
            tolerance = given or DEFAULT_TOLERANCE
            rule = StoppingRule(tolerance, resolution.settings.max_iterations)
            solution = solve_clipped(estimator.problem, estimator.arrange(unbiased), is_clipped, rule, listener)
        return Solved(estimator, unbiased, resolution, solution, tolerance, choice, step, is_clipped)


def _ceiling(y: Tensor, curve: ToneCurve | None, sample_type: str | None, n_axes: int) -> float | None:
    """Give the largest value that a sample can have, in light where that is what is restored."""
    ceiling = white_of(y, sample_type)
    if ceiling is None or curve is None:
        return ceiling
    white = torch.full((y.shape[-n_axes - 1], *[1] * n_axes), ceiling, dtype=torch.float64, device=y.device)
    return synchronize.as_number(curve.to_light(white, n_axes).min())


def _find_bounds(data: Tensor, kernel: Kernel, resolution: Resolution) -> Tensor | None:
    """Find samples that are full, and so are bounds, where estimates heed them."""
    if resolution.ceiling is None or not kernel.layer.is_plain or not resolution.settings.is_linear:
        return None
    if torch.is_grad_enabled() and (data.requires_grad or kernel.taps.requires_grad):
        return None
    return find_clipped(data, resolution.ceiling, kernel.n_axes)


def _with_choice(resolution: Resolution, choice: LambdaChoice) -> Resolution:
    settings = replace(resolution.settings, lam=choice.lam)
    reasons = replace(resolution.reasons, lam=choice.reason)
    return replace(resolution, settings=settings, reasons=reasons, chooses_lambda=False)


def _steps(y: Tensor, resolution: Resolution, n_axes: int) -> Steps:
    """Give the distance of neighboring values that a sample of each channel can have; 0 where it can have any."""
    given, curve = resolution.settings.quantization, resolution.tone_curve
    step = given if given is not None else 0.0 if y.is_floating_point() else 1.0
    return (step,) if curve is None or step == 0 else tuple(step * slope for slope in curve.slopes(y, n_axes))


def _check_size(data: Tensor, inverse: PseudoInverse) -> None:
    """Refuse data of another size than an inverse was built for."""
    expected, size = inverse.geometry.output_size, inverse.geometry.image_size
    if tuple(data.shape[-len(expected) :]) != expected:
        raise ShapeError(
            f"the factor takes outputs of {format_size(expected)}, but the data are "
            f"{format_size(data.shape[-len(expected) :])}; use "
            f'one that was made for them: this one was made with input_size="{",".join(map(str, size))}".'
        )


def _check_truth(truth: Tensor, channels: Size, image_size: Size) -> None:
    """Refuse a truth of another shape than the estimate: batch and channels, and the size of the image."""
    expected = (*channels, *image_size)
    if tuple(truth.shape) != expected:
        raise ShapeError(
            f"the truth should have the shape of the estimate, {format_size(image_size)} pixels or {expected} in all, "
            f"but has {format_size(truth.shape[-len(image_size) :])} pixels or {tuple(truth.shape)}; "
            "crop it to the same frame."
        )
