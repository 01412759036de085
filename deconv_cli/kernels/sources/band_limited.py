"""Sample a continuous kernel so that its transform is right up to half of Nyquist's frequency.

A sharp and a blurred picture of a camera were both integrated over its pixels, so that what maps one to the other are
samples of the kernel itself, and not its integrals over pixels, which would count the pixels twice. The samples of a
kernel of transform F have the transform Σ F(f + k) over whole numbers k (Oppenheim and Schafer, Discrete-time signal
processing, 1989, section 3.2). A low-pass filter in front of the sampling is 1 up to a frequency of 1/4 and 0 from 3/4,
from where frequencies would be folded into that range; in between it falls about as the share that the folded frequency
itself, and not its alias, has in the detail of a picture of power 1/f² that is seen through square pixels. It has
negative lobes, so that edges ring.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deconv_cli.errors import UsageError
from deconv_cli.kernels.sources.kernel_source import MAX_REACH, ContinuousKernel
from deconv_cli.operators.axes import crop
from deconv_cli.vocabulary import Size, format_size

PASSED, STOPPED = 0.25, 0.75
"""Cycles a sample up to which all is passed, and from where nothing is."""
_MARGIN = 10
"""Samples beside the reach of a kernel into which edges may ring."""
_DROPPED = 2e-4
"""Largest change at any frequency in the band when samples are cut along one axis."""
MAX_SIZE = 2 * (MAX_REACH + _MARGIN) + 1
"""Samples along an axis."""
_MAX_POINTS = 2**19
"""Frequencies at which a transform is computed at once."""
_N_NEAR, _PER_WAVE, _N_FAR = 4, 4, 17
"""Frequencies along an axis, and between the lowest waves, at which the error of a transform is evaluated."""


def sample_kernel(kernel: ContinuousKernel, size: Size | None = None) -> Tensor:
    """Sample a kernel, its transform right to 1e-3 up to half of Nyquist's frequency where no tail of it is cut.

    Args:
        kernel: what is sampled.
        size: samples along each axis, odd; `None` for those that matter. The more there are, the less of a tail is cut.

    Returns:
        What a point becomes, shape `(*size)`, odd, float64, of sum 1.

    Raises:
        UsageError: a size with which more than tails would be cut, or one that is too large.
    """
    own = _sample_what_matters(kernel)
    if size is None:
        return own
    if len(size) != own.ndim or not all(
        n % 2 and least <= n <= MAX_SIZE for n, least in zip(size, own.shape, strict=True)
    ):
        raise UsageError(
            f"the size of this kernel should be odd along each axis, at least {format_size(own.shape)} and at most "
            f"{MAX_SIZE}, but is {format_size(size)}."
        )
    psf = sample_with_margin(kernel, size)
    return psf / psf.sum()


def transform_error(kernel: ContinuousKernel, psf: Tensor) -> float:
    """Give by how much the transform of samples differs from that of their kernel at most, at frequencies passed.

    Args:
        kernel: what was sampled.
        psf: its samples, as `sample_kernel` gives them.
    """
    # Cut tails matter at the lowest frequencies, between those of a transform of this size.
    near = [torch.arange(1, _N_NEAR * _PER_WAVE, dtype=torch.float64) / (_PER_WAVE * n) for n in psf.shape]
    far = torch.linspace(0, PASSED, _N_FAR, dtype=torch.float64)
    along = [torch.cat([far, low[low < PASSED]]) for low in near]
    # At the opposite frequency it is the complex conjugate.
    frequencies = [along[0], *(torch.cat([f, -f]) for f in along[1:])]
    found = psf.to(torch.complex128)
    for axis, f in enumerate(frequencies):
        at = torch.arange(psf.shape[axis]) - psf.shape[axis] // 2
        waves = torch.exp(-2j * math.pi * f[:, None] * at)
        found = torch.tensordot(found, waves, ([0], [1]))
    return float((found - kernel.transform(*_spread(frequencies))).abs().max())


def _sample_what_matters(kernel: ContinuousKernel) -> Tensor:
    """Sample a kernel where its samples matter to the frequencies that are passed."""
    psf = sample_with_margin(kernel)
    # A kernel that ends on the edge of a sample, up to rounding, does not touch the next one.
    kept = [_needed(psf, axis, max(0, math.ceil(reach - 0.5 - 1e-9))) for axis, reach in enumerate(kernel.reach)]
    start = tuple(size // 2 - n for size, n in zip(psf.shape, kept, strict=True))
    psf = crop(psf, start, tuple(2 * n + 1 for n in kept))
    return psf / psf.sum()


def sample_with_margin(kernel: ContinuousKernel, size: Size | None = None) -> Tensor:
    """Do the same, and leave all samples that hardly matter, which is faster.

    Tails that are cut are folded back into the kernel, so that no light is lost.
    """
    sizes = size or tuple(2 * math.ceil(reach + _MARGIN) + 1 for reach in kernel.reach)
    waves = [torch.arange(-int(STOPPED * n), int(STOPPED * n) + 1) for n in sizes]
    spectrum = torch.zeros(sizes, dtype=torch.complex128)
    n_rows = max(_MAX_POINTS // math.prod(len(wave) for wave in waves[1:]), 1)
    for rows in waves[0].split(n_rows):
        part = _low_passed(kernel, [wave.double() / n for wave, n in zip([rows, *waves[1:]], sizes, strict=True)])
        for axis in range(1, len(sizes)):
            folded = part.new_zeros([*part.shape[:axis], sizes[axis], *part.shape[axis + 1 :]])
            part = folded.index_add_(axis, waves[axis] % sizes[axis], part)
        spectrum.index_add_(0, rows % sizes[0], part.to(spectrum.dtype))
    return torch.fft.fftshift(torch.fft.ifftn(spectrum).real)


def _low_passed(kernel: ContinuousKernel, frequencies: list[Tensor]) -> Tensor:
    """Give the transform of a kernel behind the filter."""
    spread = _spread(frequencies)
    return math.prod(map(_low_pass, spread), start=kernel.transform(*spread))


def _spread(frequencies: list[Tensor]) -> list[Tensor]:
    """Shape the frequencies along each axis to be broadcast against each other."""
    n_axes = len(frequencies)
    return [f.reshape([-1 if own == axis else 1 for own in range(n_axes)]) for axis, f in enumerate(frequencies)]


def _low_pass(frequency: Tensor) -> Tensor:
    """Give the integral of a Hann window from where all is passed to where nothing is."""
    way = ((frequency.abs() - PASSED) / (STOPPED - PASSED)).clamp(0, 1)
    return 1 - way + (2 * math.pi * way).sin() / (2 * math.pi)


def _needed(psf: Tensor, axis: int, n_least: int) -> int:
    """Count the samples beside the middle, at least `n_least`, beyond which nothing matters to frequencies passed."""
    rows = psf.to(torch.complex128)
    for other in set(range(psf.ndim)) - {axis}:
        rows = torch.fft.fft(rows, dim=other).index_select(other, _passed(psf.shape[other]))
    rows, middle = rows.movedim(axis, 0).reshape(psf.shape[axis], -1), psf.shape[axis] // 2
    frequencies = torch.fft.fftfreq(len(rows), dtype=torch.float64)[_passed(len(rows))]
    change = rows.new_zeros(len(frequencies), rows.shape[1])
    for n in range(middle, n_least, -1):
        wave = torch.exp(2j * math.pi * n * frequencies)
        change += torch.outer(wave.conj(), rows[middle + n]) + torch.outer(wave, rows[middle - n])
        if float(change.abs().max()) > _DROPPED:
            return n
    return n_least


def _passed(size: int) -> Tensor:
    """List the frequencies of a transform of `size` samples that are in the band."""
    return (torch.fft.fftfreq(size).abs() <= PASSED).nonzero()[:, 0]
