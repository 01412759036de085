"""Examine a restoration further: what the kernel passes, and what the residual shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from deconv_cli.diagnostics.conditioning import Conditioning, Widths, measure_conditioning, measure_resolution
from deconv_cli.diagnostics.residual import BorderBand
from deconv_cli.diagnostics.residual_tests import ResidualTests, check_residual
from deconv_cli.diagnostics.spectra import FadedImages
from deconv_cli.diagnostics.torus_modes import InverseFilter, ModeBands, torus_modes
from deconv_cli.noise_model import WHITE, NoiseModel
from deconv_cli.operators import synchronize
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.layer_convolution import GroupedLayer, LayerConvolution
from deconv_cli.operators.phases import rearranged_taps, transposed_taps, whole_layer
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
        conditioning: what the kernel passes on the torus of the image, and how strongly noise comes back.
        null_share_of_data: the part of the energy of the data that no image explains on a torus; unless they are
            periodic, they are faded out towards the edges first.
        null_share_of_estimate: the part of the energy of the estimate that the kernel removes.
        resolution: how wide a single bright pixel becomes; `None` where pixels are phases of different gains.
        tests: what the residual shows.
        channel: if channels were restored one by one, the one that all but the residual is of: the first whose residual
            shows a fault, or else the one with the most noise.
    """

    residual: Tensor
    conditioning: Conditioning
    null_share_of_data: float
    null_share_of_estimate: float
    resolution: Widths | None
    tests: ResidualTests
    channel: int | None = None


def diagnose(
    inverse: PseudoInverse,
    result: Reconstruction,
    y: Tensor,
    *,
    bias: Tensor | None = None,
    noise: float | None = None,
) -> Diagnosis:
    """Examine the result of `reconstruct`.

    Singular values are those of the kernel on a torus, whatever the border, and at a part of the frequencies for
    photographs or many channels. For a layer they are those of one group (see `equivalent_convolution`).

    Args:
        inverse: the one that was applied.
        result: its result.
        y: its data, shape `(C_out, *output_size)` or `(B, C_out, *output_size)`.
        bias: of each output channel, shape `(C_out,)`.
        noise: standard deviation of the noise in the data, if it is known.
    """
    problem, n_axes = inverse.problem, inverse.kernel.n_axes
    data = inverse.arrange(subtract_bias(y, bias, n_axes).detach())
    residual = data - problem.operator.forward(result.solution.value.detach())
    estimate = inverse.kernel.split(result.image.detach())
    taps, outputs, estimate, left, has_phases = equivalent_convolution(problem.operator, data, estimate, residual)
    image_size, data_size = (tuple(images.shape[-n_axes:]) for images in (estimate, outputs))
    as_filter = _as_filter(inverse)
    modes = torus_modes(taps, image_size)
    of_data = modes if data_size == image_size else torus_modes(taps, data_size)
    conditioning = measure_conditioning(modes, as_filter)
    spectra = [FadedImages.of(images, n_axes).spectrum for images in (outputs, estimate)]
    if problem.operator.boundary.is_periodic and image_size == data_size:
        spectra = [modes.transformed(images) for images in (outputs, estimate)]
    threshold = conditioning.threshold
    return Diagnosis(
        residual=inverse.kernel.join(residual),
        conditioning=conditioning,
        null_share_of_data=of_data.null_share(of_data.of_outputs(spectra[0]), spectra[0], threshold),
        null_share_of_estimate=modes.null_share(modes.of_inputs(spectra[1]), spectra[1], threshold),
        resolution=None if has_phases else measure_resolution(taps, image_size, as_filter),
        tests=result.residual_tests
        or check_residual(
            left,
            FadedImages.of(outputs, n_axes),
            ModeBands(of_data, as_filter),
            kernel_size=tuple(taps.shape[2:]),
            noise=NoiseModel(noise, is_sigma_given=noise is not None),
            is_boundary_free=problem.operator.boundary.is_unknown,
        ),
    )


def equivalent_convolution(
    operator: Convolution, data: Tensor, estimate: Tensor, residual: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, bool]:
    """Give a convolution on a torus with its images; for a layer, one group with its phases as channels.

    That is the group with the largest residual. Gives the taps `(C_out, C_in, *k)` first, and last whether channels are
    phases of one image.
    """
    if not isinstance(operator, LayerConvolution):
        return operator.kernel, data, estimate, residual, False
    groups, axes, options = GroupedLayer(operator), operator.layer_geometry.grid_axes, operator.options
    part, n_dims = whole_layer(axes), len(operator.input_shape)
    squares = groups.divide(residual).square().movedim(-n_dims - 1, 0).flatten(1).sum(-1)
    group = synchronize.as_index(squares.argmax())
    outputs, left, images = (groups.divide(of).select(-n_dims - 1, group) for of in (data, residual, estimate))
    taps = rearranged_taps(operator.kernel, axes, options.groups, on_torus=True)
    if options.transposed:
        taps, outputs, left = transposed_taps(taps), part.take_fine(outputs), part.take_fine(left)
    else:
        images = part.take_fine(images)
    return taps[group], outputs, images, left, any(axis.stride > 1 for axis in axes)


def join_diagnoses(parts: Sequence[Diagnosis], n_axes: int) -> Diagnosis:
    """Choose the channel to report of those that were restored one by one, and join the residuals."""
    numbers = range(len(parts))
    loudest = max(numbers, key=lambda c: parts[c].conditioning.noise_gain)
    channel = next((c for c in numbers if parts[c].tests.finding.is_warning), loudest)
    residual = torch.cat([part.residual for part in parts], dim=-n_axes - 1)
    return replace(parts[channel], residual=residual, channel=channel)


def check_residual_of(
    inverse: PseudoInverse,
    residual: Tensor,
    data: FadedImages,
    *,
    border: Sequence[BorderBand] | None = None,
    noise: NoiseModel = WHITE,
    least_noise: float = 0.0,
) -> ResidualTests:
    """Test the residual y − Ax̂ of an inverse, arranged for its operator as the data are; see `check_residual`."""
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
    """Compute the modes of the kernel on the torus of the data, once for each inverse."""
    found = _BANDS.get(inverse)
    if found is None:
        modes = torus_modes(inverse.problem.operator.kernel, inverse.geometry.output_size)
        found = _BANDS[inverse] = ModeBands(modes, _as_filter(inverse))
    return found


def _as_filter(inverse: PseudoInverse) -> InverseFilter:
    problem = inverse.problem
    rcond = inverse.rcond if inverse.rcond is not None else default_rcond(problem.operator.kernel.dtype)
    return InverseFilter(problem.weight, problem.penalty, rcond)
