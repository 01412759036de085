"""The pipeline from data to a reconstruction, for the library and the command line alike.

    resolve → undo the tone curve → choose λ → build → solve → measure → predict the error → apply the tone curve

The methods have the order in which they run: `reconstruct` splits off planes; `_reconstruct_samples` undoes the tone
curve and tests the picture; `_restore_together` does the rest, for one channel at a time if `_restore_one_by_one` calls
it. A pipeline keeps the inverses that it built last, so more data of the same size cost no new factors.
Several threads may use one pipeline at the same time.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

from torch import Tensor

from deconv_cli.allocator import return_freed_memory
from deconv_cli.diagnostics.conditioning import measure_resolution, widest
from deconv_cli.diagnostics.noise_level import LEAST_SIDE
from deconv_cli.diagnostics.torus_modes import InverseFilter
from deconv_cli.errors import DeconvError, ShapeError, UsageError
from deconv_cli.kernels.bead_psf import OF_POINTS, kurtosis
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.kernels.kernel_field import KernelField
from deconv_cli.operators.axes import crop
from deconv_cli.operators.linear_operator import check_image
from deconv_cli.regularizers import spaced_penalty
from deconv_cli.settings import ReconstructionSettings, ResolvedSettings
from deconv_cli.solvers.estimator import Estimator
from deconv_cli.solvers.fourier import default_rcond
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.tone_curve import ToneCurve
from deconv_cli.vocabulary import ROUNDING_NOISE, InputKind, Size, counted, format_size
from deconv_cli.workflows.apply_kernel import as_bias, subtract_bias
from deconv_cli.workflows.arithmetic import Planes, as_any_kernel, pick_dtype
from deconv_cli.workflows.channels import join_channels, join_diagnoses
from deconv_cli.workflows.estimators import BuiltInverses, build_estimator, settle_lambda, solve
from deconv_cli.workflows.lambda_series import LambdaView, vary_smoothing
from deconv_cli.workflows.measurement import Diagnosis, diagnose, examine_picture, measure
from deconv_cli.workflows.noise_of_data import (
    Steps,
    find_bounds,
    find_noise_of_picture,
    settle_noise,
    steps_of,
    with_ceiling,
)
from deconv_cli.workflows.predict import error_in_samples, predict_by_restoring_again, predict_for
from deconv_cli.workflows.progress_listener import ProgressListener, as_listener
from deconv_cli.workflows.reconstruction import Reconstruction
from deconv_cli.workflows.resolve_settings import (
    NO_METADATA,
    InputMetadata,
    ResolvedInput,
    resolve,
)
from deconv_cli.workflows.trust import overshoots_at_edges

TESTED_SIDE = 256
"""Samples along each axis of the part of a photograph that tests the kernel. For twelve wrong kernels on three
photographs of scikit-image, 384 gave the same verdicts in three times the time."""
TESTED_WIDTHS = 4
"""The part that tests a large kernel is this many times as wide as the kernel, if the photograph is."""
LEAST_LAMBDA = 1e-3
"""λ of the inverse that diagnoses an estimate which is not linear in the data, if no λ was chosen from them."""

_SHARP_EDGES = 'the test of the kernel overshoots at many edges; for text and flat areas prior="tv" is often better'
_SPARSE = "a few bright points hold most of the contrast: on such data the real error was up to twice the expected one"


class Pipeline:
    """Reconstructs one batch of data after another, all made by one kernel.

    The kernel is as `forward` takes it: for all channels alike, one for each channel, one that mixes them, or a field
    for all channels alike. Open settings are resolved for each input. A bias `(C_out,)` is subtracted from each output
    channel first.

    Attributes:
        settings: the settings that were given.
        inverse: the linear inverse that was applied last to all channels, if any.
    """

    def __init__(
        self,
        kernel: Tensor | KernelField,
        settings: ReconstructionSettings,
        *,
        bias: Tensor | None = None,
    ) -> None:
        self.settings = settings
        self._kernel, self._bias = kernel, bias
        self.inverse: PseudoInverse | None = None
        self._built = BuiltInverses()
        self._channels: list[Pipeline] = []
        self._adding = threading.Lock()

    def resolve(self, metadata: InputMetadata = NO_METADATA) -> ResolvedInput:
        """Fill in the open settings for an input; nothing is computed yet. See `resolve`."""
        return resolve(self.settings, self._canonical, metadata)

    def reconstruct(
        self,
        y: Tensor,
        resolution: ResolvedInput | None = None,
        *,
        truth: Tensor | None = None,
        progress: Callable[[int, float], None] | None = None,
    ) -> Reconstruction:
        """Estimate the images that the convolution turned into `y`, and measure how good the estimate is.

        Args:
            y: shape `(C_out, *output_size)` or `(B, C_out, *output_size)`, of any real dtype.
            resolution: the result of `resolve`; by default that for no metadata.
            truth: the true images, of the shape of the estimate, to compare the estimate and its predicted error with.
            progress: called after every iteration.
        """
        resolution = self.resolve() if resolution is None else resolution
        check_image(y, "the output to invert")
        if truth is not None:
            check_image(truth, "the truth")
        planes = self._planes(y)
        if planes is None:
            return self._reconstruct_samples(y, resolution, truth, as_listener(progress)).compared_with(truth)
        known = None if truth is None else planes.split(truth)
        result = self._reconstruct_samples(planes.split(y), resolution, known, as_listener(progress))
        predicted = result.predicted_error
        if predicted is not None:
            predicted = replace(predicted, map=planes.join(predicted.map))
        return replace(result, image=planes.join(result.image), predicted_error=predicted).compared_with(truth)

    def _reconstruct_samples(
        self, y: Tensor, resolution: ResolvedInput, truth: Tensor | None, listener: ProgressListener
    ) -> Reconstruction:
        """Undo the tone curve of data with the axes of the kernel, restore and test them, and apply the curve again."""
        kernel = self._canonical.with_layer(resolution.settings.layer)
        n_axes, axis, curve = kernel.n_axes, kernel.channel_axis, resolution.tone_curve
        if curve is not None and y.ndim > n_axes:
            n_channels = y.shape[axis]
            curve.check_channels(n_channels if resolution.is_per_channel else kernel.n_inputs(n_channels))
        steps, resolution = steps_of(y, resolution, n_axes), with_ceiling(resolution, y, n_axes)
        if truth is not None:
            _check_truth(truth, kernel, y, resolution)
            truth = self._in_light(truth, curve)
        data = self._in_light(y, curve)
        if self._is_one_by_one(data, resolution):
            result = self._restore_one_by_one(data, kernel, resolution, steps, truth, listener)
        else:
            result = self._restore_together(data, resolution, steps, truth, listener)
        return_freed_memory()
        if resolution.is_tested and result.settings.defaults is InputKind.PICTURE:
            if result.settings.objective == "photo" and kernel.field is None:
                listener.begin("testing the kernel")
                result = self._test_kernel(result, y, resolution)
            result = examine_picture(result, y, data, kernel, resolution)
        if curve is None:
            return result
        predicted, image = result.predicted_error, result.image
        if predicted is not None and result.settings.is_linear:
            predicted = replace(predicted, in_samples=error_in_samples(image.detach(), predicted.map, curve, n_axes))
        return replace(result, image=curve.to_stored(image, n_axes), predicted_error=predicted, tone_curve=curve)

    def _restore_together(
        self, y: Tensor, resolution: ResolvedInput, steps: Steps, truth: Tensor | None, listener: ProgressListener
    ) -> Reconstruction:
        """Restore channels that go together: find the noise, choose λ, build, solve, measure, and predict the error.

        Data and truth have the shape `(*batch, C, *size)`, and are light if the blur acted there.
        """
        return_freed_memory()
        data, kernel, image_size = self._arrange(y, resolution.settings)
        if kernel.size != self._canonical.size:
            whole, middle = format_size(self._canonical.size), format_size(kernel.size)
            note = f"only the middle {middle} of the kernel's {whole} taps were used: the others are nearly zero"
            resolution = replace(resolution, notes=(*resolution.notes, note))
        step = math.hypot(*steps) / math.sqrt(len(steps))
        is_clipped = find_bounds(data, kernel, resolution)
        unbiased = subtract_bias(data, self._bias, kernel.n_axes)

        filled, resolution = settle_noise(unbiased, kernel, resolution, is_clipped)
        if resolution.chooses_lambda:
            listener.begin("choosing λ")
        choice, resolution = settle_lambda(unbiased, kernel, resolution, step, is_clipped)

        listener.begin("building the inverse")
        estimator = self._build(kernel, image_size, resolution, filled, is_kept=choice is None)
        solution, tolerance, bounds = solve(estimator, unbiased, filled, is_clipped, resolution, listener)

        listener.begin("measuring the residual")
        result = measure(estimator, unbiased, resolution, solution, tolerance, choice, step, bounds)
        result = replace(result, scale=replace(result.scale, has_bias=self._bias is not None))
        if not resolution.settings.predict:
            return result

        listener.begin("predicting the error")
        return_freed_memory()
        least_sigma = step * ROUNDING_NOISE
        if not isinstance(estimator, PseudoInverse):
            curve = resolution.tone_curve
            predicted = predict_by_restoring_again(estimator, result, unbiased, curve, least_sigma, truth)
            return replace(result, predicted_error=predicted)
        inverse = self._framed(estimator, data, resolution)
        predicted = predict_for(inverse, result, unbiased.detach(), least_sigma, truth, resolution.n_pieces)
        is_sparse = not inverse.operator.is_layer and kurtosis(data.detach()) > OF_POINTS
        return replace(result, predicted_error=predicted, notes=(*result.notes, *([_SPARSE] if is_sparse else [])))

    def _restore_one_by_one(
        self,
        y: Tensor,
        kernel: Kernel,
        resolution: ResolvedInput,
        steps: Steps,
        truth: Tensor | None,
        listener: ProgressListener,
    ) -> Reconstruction:
        """Restore each channel with its own kernel, λ or noise; their inverses share the memory."""
        kernels = [self._kernel]
        if resolution.is_per_channel:
            kernel = replace(kernel, is_per_channel=True)
            kernels = list(kernel.taps[:, 0])
        self.check_channels(y, kernel, resolution)
        axis, settings = kernel.channel_axis, resolution.settings
        n_channels = y.shape[axis]
        biases = [None] * n_channels if self._bias is None else list(self._bias.split(1))
        with self._adding:  # they are kept while pictures in gray alternate with pictures in color
            for c in range(len(self._channels), n_channels):
                own = replace(self.settings, dimensions=kernel.n_axes)
                self._channels.append(Pipeline(kernels[c % len(kernels)], own, bias=biases[c]))
        if settings.max_memory is not None:
            settings = replace(settings, max_memory=max(settings.max_memory // n_channels, 1))
        noises = settings.noise
        if noises == "auto":
            dtype = pick_dtype(settings.dtype, y, y.device)
            own_kernels = [as_any_kernel(taps, y.device, dtype, kernel.n_axes) for taps in kernels]
            noises = find_noise_of_picture(y.to(dtype), own_kernels, replace(resolution, settings=settings))
        parts = []
        for c, pipeline in enumerate(self._channels[:n_channels]):
            lam = resolution.lams[c] if resolution.lams else settings.lam
            noise = noises[c % len(noises)] if isinstance(noises, tuple) else noises
            alone = replace(settings, lam=lam, noise=noise, noise_levels=settings.noise_levels[c : c + 1])
            part = replace(resolution, settings=alone, lams=(), is_per_channel=False, notes=())
            known = None if truth is None else truth.narrow(axis, c, 1)
            parts.append(
                pipeline._restore_together(y.narrow(axis, c, 1), part, (steps[c % len(steps)],), known, listener)
            )
            if parts[c].lambda_choice is not None:
                pipeline.inverse = None  # of no other data; as large as several images
        return join_channels(parts, resolution, kernel.n_axes)

    def _test_kernel(self, result: Reconstruction, y: Tensor, resolution: ResolvedInput) -> Reconstruction:
        """Restore the middle of a photograph with the quadratic prior too, whose residual reveals a wrong kernel."""
        kernel = self._canonical
        settings = replace(resolution.settings, prior="quadratic", strength=None, predict=False, seed=None)
        size = tuple(y.shape[-kernel.n_axes :])
        window = tuple(min(n, max(TESTED_SIDE, TESTED_WIDTHS * k)) for n, k in zip(size, kernel.size, strict=True))
        if window != size:
            settings = replace(settings, boundary="unknown", padding="same", input_size=None)
        middle = crop(y, tuple((n - kept) // 2 for n, kept in zip(size, window, strict=True)), window)
        pipeline = Pipeline(self._kernel, settings, bias=self._bias)
        tested = replace(resolution, settings=settings, chooses_lambda=True, tests_alignment=False, notes=())
        try:
            found = pipeline._reconstruct_samples(middle, tested, None, as_listener(None))
        except DeconvError as error:
            return replace(result, notes=(*result.notes, f"the kernel was not tested: {error}"))
        lams = sorted(part.settings.lam for part in found.channels or (found,))
        penalty = spaced_penalty(settings.penalty, settings.spacing)
        weight, rcond = lams[len(lams) // 2] * found.spectrum.sigma_max**2, default_rcond(result.image.dtype)
        taps = kernel.taps[:1] if resolution.is_per_channel else kernel.taps
        finest = widest(measure_resolution(taps, window, InverseFilter(weight, penalty, rcond)))
        if overshoots_at_edges(found.clipping) and len(found.doubts) == 1:
            result = replace(result, notes=(*result.notes, _SHARP_EDGES))
        return replace(result, quadratic=found, finest=finest, light_caution=found.light_caution)

    def find_bounds(self, y: Tensor, resolution: ResolvedInput) -> Tensor | None:
        """Find the full samples of data with the axes of the kernel that `reconstruct` takes for lower bounds."""
        kernel = self._canonical.with_layer(resolution.settings.layer)
        data = self._in_light(y, resolution.tone_curve)
        return find_bounds(data, kernel, with_ceiling(resolution, y, kernel.n_axes))

    def diagnose(self, result: Reconstruction, y: Tensor) -> Diagnosis:
        """Examine the last result of `reconstruct`, which was made from the data `y`.

        An estimate that is not linear in the data is examined as one of the inverse that tested its kernel, except for
        its own residual.
        """
        planes = self._planes(y)
        if planes is not None:
            found = self._diagnose(replace(result, image=planes.split(result.image)), planes.split(y))
            return replace(found, residual=planes.join(found.residual))
        return self._diagnose(result, y)

    def _diagnose(self, result: Reconstruction, y: Tensor) -> Diagnosis:
        n_axes, curve = self._canonical.n_axes, result.tone_curve
        if curve is not None:
            y = self._in_light(y, curve)
        if result.channels:  # whose images are light already
            channels = zip(
                self._channels[: len(result.channels)], result.channels, y.split(1, -n_axes - 1), strict=True
            )
            return join_diagnoses([pipeline._diagnose(part, data) for pipeline, part, data in channels], n_axes)
        if curve is not None:
            result = replace(result, image=curve.to_light(result.image, n_axes), tone_curve=None)
        data, inverse, quadratic = y.to(result.image.dtype), self.inverse, result.quadratic
        if inverse is None and result.settings.is_linear:
            _, kernel, size = self._arrange(y, result.settings)
            inverse = PseudoInverse(kernel, size, replace(result.settings, noise=None))
        elif inverse is None:
            lam = LEAST_LAMBDA if quadratic is None else quadratic.settings.lam
            settings = replace(result.settings, prior="quadratic", strength=None, predict=False, seed=None, lam=lam)
            settings = settings if settings.method != "richardson-lucy" else replace(settings, method="auto")
            _, kernel, size = self._arrange(y, settings)
            inverse = self._built.find(kernel, size, settings)
        found = diagnose(inverse, result, data, bias=self._bias, noise=result.settings.noise_sigma)
        return_freed_memory()
        tests = None if quadratic is None else quadratic.residual_tests
        return found if tests is None else replace(found, tests=replace(found.tests, finding=tests.finding))

    def vary_lambda(self, result: Reconstruction, y: Tensor, sample_type: str | None = None) -> tuple[LambdaView, ...]:
        """Restore a detail of the last result under other λ too; see `vary_smoothing` and `resolve`."""
        return_freed_memory()
        kernel, planes = self._canonical, self._planes(y)
        if planes is not None:
            y = planes.split(y)
        pipeline = Pipeline(kernel.taps, replace(self.settings, dimensions=kernel.n_axes), bias=self._bias)

        def restore(part: Tensor, resolution: ResolvedInput) -> Tensor:
            return pipeline._reconstruct_samples(part, resolution, None, as_listener(None)).image

        return vary_smoothing(kernel, result, y, restore, sample_type)

    @cached_property
    def _canonical(self) -> Kernel:
        """The kernel in canonical form, checked once."""
        return Kernel.of_any(self._kernel, dimensions=self.settings.dimensions)

    def _planes(self, y: Tensor) -> Planes | None:
        """Return how data with more axes than the kernel are split into planes."""
        return Planes.of(y, self._canonical, self.settings.dimensions)

    def _in_light(self, stored: Tensor, curve: ToneCurve | None) -> Tensor:
        """Undo the tone curve, if there is one, in the precision of the arithmetic."""
        if curve is None:
            return stored
        n_axes = self._canonical.n_axes
        return curve.to_light(stored.to(pick_dtype(self.settings.dtype, stored, stored.device)), n_axes)

    def _arrange(self, y: Tensor, settings: ResolvedSettings) -> tuple[Tensor, Kernel, Size]:
        """Convert data and kernel to the precision of the arithmetic; return the size of the images too."""
        dtype = pick_dtype(settings.dtype, y, y.device)
        kernel = as_any_kernel(self._kernel, y.device, dtype, self.settings.dimensions).with_layer(settings.layer)
        kernel.split(y, are_outputs=True)  # refuses what does not fit before anything is built
        size = tuple(y.shape[-kernel.n_axes :])
        image_size = kernel.geometry_of_output(size, settings.padding, settings.input_size).image_size
        if settings.defaults is InputKind.PICTURE and settings.padding == "same" and min(size) >= LEAST_SIDE:
            kernel = kernel.cropped_to(image_size)
        return y.to(dtype), kernel, image_size

    def _build(
        self, kernel: Kernel, image_size: Size, resolution: ResolvedInput, filled: Tensor, *, is_kept: bool
    ) -> Estimator:
        """Build the estimator, or take the inverse that was built before; one whose λ is of these data is not kept."""
        settings = resolution.settings
        if not settings.is_linear:
            self.inverse = None
            return build_estimator(kernel, image_size, settings, filled, resolution.tone_curve)
        self.inverse = None  # frees its memory first
        if is_kept:
            self.inverse = self._built.find(kernel, image_size, settings)
        else:
            self.inverse = PseudoInverse(kernel, image_size, replace(settings, noise=None))
        return self.inverse

    def _framed(self, inverse: PseudoInverse, data: Tensor, resolution: ResolvedInput) -> PseudoInverse:
        """Return the inverse at the frame of the whole picture, for data that are a part of it."""
        if resolution.frame is None:
            return inverse
        boundary, padding = resolution.frame
        kernel, settings = inverse.kernel, replace(resolution.settings, boundary=boundary, padding=padding)
        size = tuple(data.shape[-kernel.n_axes :])
        return self._built.find(kernel, kernel.geometry_of_output(size, padding, None).image_size, settings)

    def _is_one_by_one(self, y: Tensor, resolution: ResolvedInput) -> bool:
        """Return whether each channel has its own kernel or λ."""
        kernel = self._canonical
        has_axes = y.ndim in (kernel.n_axes + 1, kernel.n_axes + 2)
        chooses = resolution.chooses_lambda and kernel.shared and has_axes and y.shape[kernel.channel_axis] > 1
        return resolution.is_per_channel or bool(resolution.lams) or chooses

    def check_channels(self, y: Tensor, kernel: Kernel, resolution: ResolvedInput) -> None:
        """Refuse kernels, λ or a bias for another number of channels."""
        if kernel.is_per_channel:
            kernel.check_channels(y)
        else:
            kernel.split(y, are_outputs=True)
        n_lams, n_channels = len(resolution.lams), y.shape[kernel.channel_axis]
        if n_lams not in (0, n_channels):
            raise UsageError(
                f"λ was given for {n_lams} channels, but the image has {n_channels}; give one for each, or one for all."
            )
        if self._bias is not None:
            as_bias(self._bias, y, kernel.n_axes)


def _check_truth(truth: Tensor, kernel: Kernel, data: Tensor, resolution: ResolvedInput) -> None:
    """Refuse a truth of another shape than the estimate from these data."""
    kernel.check_axes(data)
    axis, settings = kernel.channel_axis, resolution.settings
    size = tuple(data.shape[-kernel.n_axes :])
    image_size = kernel.geometry_of_output(size, settings.padding, settings.input_size).image_size
    n_channels = data.shape[axis] if resolution.is_per_channel else kernel.n_inputs(data.shape[axis])
    expected = (*data.shape[:axis], n_channels, *image_size)
    if truth.ndim == len(expected) and truth.shape[axis] != n_channels:
        raise ShapeError(
            f"the truth should have {counted(n_channels, 'channel')}, as the estimate has, but has {truth.shape[axis]}."
        )
    if tuple(truth.shape) != expected:
        wanted, found = (f"{format_size(size[-len(image_size) :])} pixels" for size in (image_size, truth.shape))
        if wanted == found:
            wanted, found = f"the shape {expected}", str(tuple(truth.shape))
        raise ShapeError(
            f"the truth should have {wanted}, as the estimate has, but has {found}; crop it to the same frame."
        )
