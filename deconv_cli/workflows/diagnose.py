"""What more there is to say about a restoration: what the kernel lets through, and what the residual shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from deconv_cli.diagnostics.conditioning import (
    Conditioning,
    gain_map,
    measure_conditioning,
    null_share_of_inputs,
    null_share_of_outputs,
)
from deconv_cli.diagnostics.hann_window import FadedImages, apply_hann_window
from deconv_cli.diagnostics.inverse_filter import InverseFilter
from deconv_cli.diagnostics.mode_bands import ModeBands
from deconv_cli.diagnostics.picard import Picard, measure_picard
from deconv_cli.diagnostics.plain_view import plain_view
from deconv_cli.diagnostics.residual import BorderBand
from deconv_cli.diagnostics.residual_tests import ResidualTests, check_residual
from deconv_cli.diagnostics.spatial_resolution import Resolution, measure_resolution
from deconv_cli.diagnostics.torus_modes import torus_modes
from deconv_cli.noise_model import WHITE, NoiseModel
from deconv_cli.solvers.fourier import default_rcond
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.workflows.apply_kernel import subtract_bias
from deconv_cli.workflows.reconstruction import Reconstruction

_BANDS: WeakKeyDictionary[PseudoInverse, ModeBands] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """A restoration examined.

    Attributes:
        residual: y − Ax̂, shape `(*batch, C_out, *output_size)`, in the units of the samples.
        conditioning: what the kernel lets through on the torus of the image, and what becomes of noise.
        null_share_of_data: which part of the energy of the data no image explains on a torus; where they do not go on
            around it, they are faded out towards the edges first.
        null_share_of_estimate: which part of that of the estimate the kernel does not let through.
        picard: the data against the singular values.
        resolution: what becomes of a single bright pixel; `None` where pixels are phases of different gains.
        tests: what the residual points to.
        gain_map: largest and smallest singular value over all frequencies, shape `(2, *image_size)`.
        channel: where channels were restored one by one, the one that all but the residual is of: the first whose
            residual shows something wrong, or the one that noise disturbs most.
    """

    residual: Tensor
    conditioning: Conditioning
    null_share_of_data: float
    null_share_of_estimate: float
    picard: Picard
    resolution: Resolution | None
    tests: ResidualTests
    gain_map: Tensor
    channel: int | None = None


def diagnose(
    inverse: PseudoInverse,
    result: Reconstruction,
    y: Tensor,
    *,
    bias: Tensor | None = None,
    noise: float | None = None,
) -> Diagnosis:
    """Examine what `reconstruct` gave.

    Singular values are those of the kernel on a torus, whatever the border; at photographs' sizes, or for many
    channels, a part of the frequencies stands for all. Of a layer they are those of one group, with its phases as
    channels (see `plain_view`).

    Args:
        inverse: the one that was applied.
        result: what it gave.
        y: the data that it was applied to, shape `(C_out, *output_size)` or `(B, C_out, *output_size)`.
        bias: what was subtracted from each output channel first, shape `(C_out,)`.
        noise: standard deviation of the noise in the data, where it is known.
    """
    problem, n_axes = inverse.problem, inverse.kernel.n_axes
    data = inverse.arrange(subtract_bias(y, bias, n_axes).detach())
    residual = data - problem.operator.forward(result.solution.value.detach())
    view = plain_view(problem.operator, data, inverse.kernel.split(result.image.detach()), residual)
    image_size, data_size = (tuple(images.shape[-n_axes:]) for images in (view.estimate, view.data))
    as_filter = _as_filter(inverse)
    is_periodic = problem.operator.boundary.is_periodic and image_size == data_size
    fade = _as_it_is if is_periodic else partial(apply_hann_window, n_axes=n_axes)
    modes = torus_modes(view.taps, image_size)
    of_data = modes if data_size == image_size else torus_modes(view.taps, data_size)
    conditioning = measure_conditioning(modes, as_filter)
    return Diagnosis(
        residual=inverse.kernel.join(residual),
        conditioning=conditioning,
        null_share_of_data=null_share_of_outputs(of_data, fade(view.data), conditioning.threshold),
        null_share_of_estimate=null_share_of_inputs(modes, fade(view.estimate), conditioning.threshold),
        picard=measure_picard(of_data, view.data, is_periodic=is_periodic),
        resolution=None if view.has_phases else measure_resolution(view.taps, image_size, as_filter),
        tests=result.residual_tests
        or check_residual(
            view.residual,
            FadedImages.of(view.data, n_axes),
            ModeBands(of_data, as_filter),
            kernel_size=tuple(view.taps.shape[2:]),
            noise=NoiseModel(noise, is_sigma_given=noise is not None),
            is_boundary_free=problem.operator.boundary.is_unknown,
        ),
        gain_map=gain_map(view.taps, image_size),
    )


def join_diagnoses(parts: Sequence[Diagnosis], n_axes: int) -> Diagnosis:
    """Choose the channel to look at of those that were restored one by one."""
    numbers = range(len(parts))
    loudest = max(numbers, key=lambda c: parts[c].conditioning.noise_gain)
    channel = next((c for c in numbers if parts[c].tests.finding.is_warning), loudest)
    return replace(
        parts[channel], residual=torch.cat([part.residual for part in parts], dim=-n_axes - 1), channel=channel
    )


def check_residual_of(
    inverse: PseudoInverse,
    residual: Tensor,
    data: FadedImages,
    *,
    border: Sequence[BorderBand] | None = None,
    noise: NoiseModel = WHITE,
    least_noise: float = 0.0,
) -> ResidualTests:
    """Test what an inverse leaves over.

    Args:
        inverse: the one that was applied.
        residual: y − Ax̂, as `inverse.arrange` arranges the data.
        data: y, less the bias if there is one; arranged likewise.
        border: what `border_profile` gave of the residual, where it was asked before.
        noise: what kind of noise the data have, and how large it is, where that is known.
        least_noise: what is no larger than this accuses no kernel.
    """
    return check_residual(
        residual,
        data,
        bands_of(inverse),
        kernel_size=inverse.kernel.size,
        border=border,
        noise=noise,
        least_noise=least_noise,
        is_boundary_free=inverse.problem.operator.boundary.is_unknown,
    )


def bands_of(inverse: PseudoInverse) -> ModeBands:
    """Give the modes of the kernel on the torus of the data; once for each inverse, however often it is applied."""
    found = _BANDS.get(inverse)
    if found is None:
        modes = torus_modes(inverse.problem.operator.kernel, inverse.geometry.output_size)
        found = _BANDS[inverse] = ModeBands(modes, _as_filter(inverse))
    return found


def _as_filter(inverse: PseudoInverse) -> InverseFilter:
    problem = inverse.problem
    rcond = inverse.rcond if inverse.rcond is not None else default_rcond(problem.operator.kernel.dtype)
    return InverseFilter(problem.weight, problem.penalty, rcond)


def _as_it_is(images: Tensor) -> Tensor:
    return images
