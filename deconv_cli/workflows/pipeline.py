"""The one pipeline from data to a reconstruction, for the library and the command line alike.

    resolve → undo the tone curve → choose λ → build → solve → measure → predict → do the tone curve again

A pipeline keeps the inverses that it built last: data of the same sizes under one border cost their factors once.
Several threads may reconstruct with one at the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from deconv_cli.diagnostics.conditioning import measure_resolution, widest
from deconv_cli.diagnostics.torus_modes import InverseFilter
from deconv_cli.errors import DeconvError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.kernels.kernel_field import KernelField
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import crop
from deconv_cli.regularizers import spaced_penalty
from deconv_cli.sample_range import limits_of, white_of
from deconv_cli.settings import ReconstructionSettings
from deconv_cli.solvers.fourier import default_rcond
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.tone_curve import ToneCurve
from deconv_cli.vocabulary import InputKind
from deconv_cli.workflows.arithmetic import check_image, pick_dtype
from deconv_cli.workflows.channel_inversions import ChannelInversions
from deconv_cli.workflows.diagnose import Diagnosis
from deconv_cli.workflows.inversion import Inversion, Measure, Steps, find_bounds
from deconv_cli.workflows.lambda_series import LambdaView, vary_smoothing
from deconv_cli.workflows.light import caution_light
from deconv_cli.workflows.planes import Planes, join_planes
from deconv_cli.workflows.progress_listener import ProgressListener, as_listener
from deconv_cli.workflows.reconstruction import Reconstruction
from deconv_cli.workflows.resolution import RecordedConvolution, Resolution, resolution_of, resolve
from deconv_cli.workflows.trust import measure_clipping

TESTED_SIDE = 256
"""Samples along each axis of the part of a photograph that tests the kernel. For twelve wrong kernels on three
photographs of scikit-image, 384 gave the same verdicts in three times the time."""


class Pipeline:
    """Reconstructs one batch of data after another, all made by one kernel.

    Args:
        kernel: the taps as `forward` takes them, of any device and floating dtype: for all channels alike, one for each
            channel, or one that mixes them; or a field of kernels, for all channels alike.
        settings: what was chosen; what is left open is resolved for each input.
        bias: subtracted from each output channel first, shape `(C_out,)`.
        inverse: one that was built before, and takes the place of the settings that made it.

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
        self._together = Inversion(kernel, settings.dimensions, bias=bias, inverse=inverse)
        self._one_by_one = ChannelInversions(kernel, bias)

    @property
    def settings(self) -> ReconstructionSettings:
        """What was chosen."""
        return self._settings

    @property
    def inverse(self) -> PseudoInverse | None:
        """The linear inverse that was applied last to all channels; `None` where there is none."""
        return self._together.inverse

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

    def _planes(self, y: Tensor) -> Planes | None:
        """Tell how data are taken apart that have more axes than the kernel spans."""
        return Planes.of(y, self._canonical, self._settings.dimensions)

    def _begin_samples(
        self, y: Tensor, resolution: Resolution, truth: Tensor | None, listener: ProgressListener
    ) -> Measure:
        """Do what `begin` does, for data whose axes are those of the kernel."""
        kernel = self._canonical.with_layer(resolution.settings.layer)
        n_axes, axis, curve = kernel.n_axes, kernel.channel_axis, resolution.tone_curve
        steps = _steps(y, resolution, n_axes)
        if curve is not None and y.ndim > n_axes:
            n_channels = y.shape[axis]
            curve.check_channels(n_channels if resolution.is_per_channel else kernel.n_inputs(n_channels))
        light = y if curve is None else self._in_light(y, curve, n_axes)
        true_light = truth if truth is None or curve is None else self._in_light(truth, curve, n_axes)
        resolution = _with_ceiling(resolution, y, n_axes)
        if self._is_one_by_one(light, resolution):
            measure = self._one_by_one.begin(light, kernel, resolution, steps, true_light, listener)
        else:
            measure = self._together.begin(light, resolution, steps, true_light, listener)

        def finish() -> Reconstruction:
            result = measure()
            # A factor has the defaults of tensors, whatever it is applied to.
            settings = self._settings if self._given is not None and kernel.layer.is_plain else result.settings
            is_looked_at = resolution.is_tested and settings.defaults is InputKind.PICTURE
            if is_looked_at and resolution.chooses_lambda and resolution.known_curve is not None:
                found = caution_light(y, kernel, resolution.known_curve, is_light=curve is not None)
                result = replace(result, light_caution=found)
            if is_looked_at and result.settings.objective == "photo" and kernel.field is None:
                listener.begin("testing the kernel")
                result = self._tested(result, y, resolution)
            limits = limits_of(y, resolution.sample_type) if is_looked_at else None
            if limits is not None:
                result = replace(result, clipping=measure_clipping(result.image.detach(), light, *limits))
            if curve is None:
                return result
            predicted, image = result.predicted_error, result.image
            if predicted is not None and result.settings.is_linear:
                ends = [curve.to_stored(image.detach() + sign * predicted.map, n_axes) for sign in (-0.5, 0.5)]
                size = synchronize.as_number((ends[1] - ends[0]).square().mean().sqrt())
                predicted = replace(predicted, in_samples=size)
            image = curve.to_stored(image, n_axes)
            return replace(result, image=image, predicted_error=predicted, tone_curve=curve)

        return finish

    def _tested(self, result: Reconstruction, y: Tensor, resolution: Resolution) -> Reconstruction:
        """Restore the middle of a photograph with the quadratic prior too, whose residual tells a wrong kernel."""
        kernel = self._canonical
        settings = replace(resolution.settings, prior="quadratic", strength=None, predict=False, seed=None)
        size = tuple(y.shape[-kernel.n_axes :])
        window = tuple(min(n, TESTED_SIDE) for n in size)
        if window != size:
            settings = replace(settings, boundary="unknown", padding="same", input_size=None)
        middle = crop(y, tuple((n - kept) // 2 for n, kept in zip(size, window, strict=True)), window)
        pipeline = Pipeline(self._kernel, settings, bias=self._bias)
        try:
            found = pipeline.reconstruct(middle, replace(resolution, settings=settings, chooses_lambda=True, notes=()))
        except DeconvError:  # such as a kernel larger than the part
            return result
        lams = sorted(part.settings.lam for part in found.channels or (found,))
        penalty = spaced_penalty(settings.penalty, settings.spacing)
        weight, rcond = lams[len(lams) // 2] * found.spectrum.sigma_max**2, default_rcond(result.image.dtype)
        taps = kernel.taps[:1] if resolution.is_per_channel else kernel.taps
        finest = widest(measure_resolution(taps, window, InverseFilter(weight, penalty, rcond)))
        return replace(result, quadratic=found, finest=finest, light_caution=found.light_caution)

    def find_bounds(self, y: Tensor, resolution: Resolution) -> Tensor | None:
        """Find samples of data with the axes of the kernel that are full, and so are bounds, as `reconstruct` does."""
        kernel, curve = self._canonical.with_layer(resolution.settings.layer), resolution.tone_curve
        light = y if curve is None else self._in_light(y, curve, kernel.n_axes)
        return find_bounds(light, kernel, _with_ceiling(resolution, y, kernel.n_axes))

    def _in_light(self, stored: Tensor, curve: ToneCurve, n_axes: int) -> Tensor:
        """Undo the tone curve, in the precision of the arithmetic."""
        if self._given is not None:
            return curve.to_light(stored.to(self._given.kernel.taps), n_axes)
        return curve.to_light(stored.to(pick_dtype(self._settings.dtype, stored, stored.device)), n_axes)

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
            return self._one_by_one.diagnose(result.channels, y, n_axes)
        return self._together.diagnose(result, y)

    def vary_lambda(self, result: Reconstruction, y: Tensor, sample_type: str | None = None) -> tuple[LambdaView, ...]:
        """Restore a detail of what `reconstruct` gave under other λ too; see `vary_smoothing` and `resolve`."""
        kernel, planes = self._canonical, self._planes(y)
        if planes is not None:
            y = planes.split(y)
        ceiling = _ceiling(y, result.tone_curve, sample_type, kernel.n_axes)
        return vary_smoothing(kernel, result, y, self._bias, ceiling)

    def _is_one_by_one(self, y: Tensor, resolution: Resolution) -> bool:
        """Return whether each channel has a kernel or a λ of its own."""
        if self._given is not None:
            return False
        kernel = self._canonical
        has_axes = y.ndim in (kernel.n_axes + 1, kernel.n_axes + 2)
        chooses = resolution.chooses_lambda and kernel.shared and has_axes and y.shape[kernel.channel_axis] > 1
        return resolution.is_per_channel or bool(resolution.lams) or chooses


def _with_ceiling(resolution: Resolution, y: Tensor, n_axes: int) -> Resolution:
    """Set the value at which a sample is full; for white noise full samples are measurements."""
    if resolution.settings.noise in (None, "white"):
        return replace(resolution, ceiling=None)
    return replace(resolution, ceiling=_ceiling(y, resolution.tone_curve, resolution.sample_type, n_axes))


def _ceiling(y: Tensor, curve: ToneCurve | None, sample_type: str | None, n_axes: int) -> float | None:
    """Give the largest value that a sample can have, in light where that is what is restored."""
    ceiling = white_of(y, sample_type)
    if ceiling is None or curve is None:
        return ceiling
    white = torch.full((y.shape[-n_axes - 1], *[1] * n_axes), ceiling, dtype=torch.float64, device=y.device)
    return synchronize.as_number(curve.to_light(white, n_axes).min())


def _steps(y: Tensor, resolution: Resolution, n_axes: int) -> Steps:
    """Give the distance of neighboring values that a sample of each channel can have; 0 where it can have any."""
    given, curve = resolution.settings.quantization, resolution.tone_curve
    step = given if given is not None else 0.0 if y.is_floating_point() else 1.0
    return (step,) if curve is None or step == 0 else tuple(step * slope for slope in curve.slopes(y, n_axes))
