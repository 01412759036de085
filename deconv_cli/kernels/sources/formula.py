"""Kernels by formula: `disk:5.2`, `motion:15@30`, `disk:4*motion:9@30`, `disk:3*shift:0.3@-0.2`.

A formula describes a blur by its Fourier transform. A camera integrates the sharp and the blurred picture over its
pixels, so the kernel between them has samples of the blur itself, not integrals over pixels. The samples of a kernel of
transform F have the transform Σ F(f + k) over whole numbers k (Oppenheim and Schafer, Discrete-time signal processing,
1989, section 3.2). A low-pass filter in front of the sampling is 1 up to a frequency of 1/4 and 0 from 3/4, where
aliases of that range begin. In between it falls about as the share that the frequency itself, and not its alias, has in
the detail of a picture of power 1/f² seen through square pixels. It has negative lobes, so edges ring.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from deconv_cli.errors import UsageError, check_type
from deconv_cli.operators.axes import resized, spread
from deconv_cli.parts import KERNEL_SOURCES
from deconv_cli.vocabulary import Size, format_size, shortened

MAX_REACH = 1024
"""Samples from the center of a kernel to its edge."""


@dataclass(frozen=True)
class ContinuousKernel:
    """The image of a point, of sum 1.

    Attributes:
        reach: half its width along each axis, in samples; tails beyond are cut.
        transform: takes the frequencies along each axis, in cycles a sample and shaped to be broadcast against each
            other, float64, and gives the Fourier transform ∫ k(x) exp(−2πi f·x) dx there, real or complex.
    """

    reach: tuple[float, ...]
    transform: Callable[..., Tensor]

    @classmethod
    def radial(cls, radius: float, profile: Callable[[Tensor], Tensor]) -> ContinuousKernel:
        """Describe a kernel of two axes by its transform at each distance from frequency zero."""
        return cls((radius, radius), lambda fy, fx: profile(torch.hypot(*torch.broadcast_tensors(fy, fx))))

    def along_last(self) -> ContinuousKernel:
        """Describe the kernel of a signal: the image of a line perpendicular to the last axis, along that axis."""
        n_others = len(self.reach) - 1

        def transform(frequency: Tensor) -> Tensor:
            still = frequency.new_zeros([1] * (n_others + 1))
            return self.transform(*[still] * n_others, frequency.reshape([1] * n_others + [-1])).flatten()

        return ContinuousKernel(self.reach[-1:], transform)

    def __mul__(self, other: ContinuousKernel) -> ContinuousKernel:
        """Describe two blurs in sequence.

        Raises:
            UsageError: their numbers of axes differ, or together they are too wide.
        """
        n_axes = len(self.reach)
        if n_axes != len(other.reach):
            raise UsageError(
                "the factors of a kernel should have the same number of axes, but have "
                f"{n_axes} and {len(other.reach)}."
            )
        reach = tuple(map(operator.add, self.reach, other.reach))
        if max(reach) > MAX_REACH:
            raise UsageError(
                f"a product of kernels may extend at most {MAX_REACH} pixels from its center; use smaller kernels."
            )
        return ContinuousKernel(reach, lambda *f: self.transform(*f) * other.transform(*f))


def check_length(half_width: float, name: str) -> float:
    """Return half the width of a kernel in samples; refuse what cannot be by `UsageError`."""
    if not half_width > 0:
        raise UsageError(f"{name} of the kernel must be positive.")
    if half_width > MAX_REACH:
        raise UsageError(
            f"{name} of the kernel is too large, since it extends at most {MAX_REACH} pixels from its center."
        )
    return half_width


Numbers = tuple[float, ...]
"""The numbers of a kernel source, in the order of its parameters."""


@dataclass(frozen=True)
class BlurFamily:
    """How the numbers of a kernel source are found in a blurred picture.

    Attributes:
        starts: takes the largest half width in pixels and the best numbers of the families before this one, by name;
            returns the numbers at which the search starts.
        steps: the distance between two starts in each number: a factor (its logarithm) for a length, degrees for an
            angle, 0 for a number that is not varied.
        log_penalty: logarithm of how much less likely this family is than a Gaussian, before the picture is seen.
        period: the angle in degrees after which the power spectrum of a kernel of these numbers repeats.
    """

    starts: Callable[[float, Mapping[str, Numbers]], list[Numbers]]
    steps: Callable[[Numbers], Numbers]
    log_penalty: float
    period: Callable[[Numbers], float] = lambda _: 180.0


@dataclass(frozen=True)
class KernelSource:
    """A formula for a kernel.

    Attributes:
        parameters: what its numbers are called, in their order, for instance `("LENGTH", "ANGLE")`.
        make: takes these numbers, and describes the blur over rows and columns, or planes, rows and columns.
        family: how its numbers are found from a blurred picture; `None` if they are not.
        read: turns the text of the only parameter into the argument of `make`, where it is not a number.
        example: what a person types behind its name and a colon.
    """

    parameters: tuple[str, ...]
    make: Callable[..., ContinuousKernel]
    family: BlurFamily | None = None
    read: Callable[[str], Any] | None = None
    example: str = ""

    def usage(self, name: str) -> str:
        """Return how a person writes a kernel of this source, which is registered under `name`."""
        example = f", for example {name}:{self.example}" if self.example else ""
        return f"{':'.join(filter(None, [name, '@'.join(self.parameters)]))}{example}"


def geometric(low: float, high: float, ratio: float) -> list[float]:
    """List numbers from `low` to `high`, each about `ratio` times the one before."""
    n = max(1, round(math.log(high / low) / math.log(ratio)))
    return [low * (high / low) ** (i / n) for i in range(n + 1)]


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
    """Sample a kernel; its transform is right to 1e-3 up to half of Nyquist's frequency, unless tails are cut.

    `size` gives the odd number of samples along each axis; by default those that matter. The more there are, the less
    of a tail is cut. Gives what a point becomes, shape `(*size)`, float64, of sum 1.

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
    """Compute the largest difference between the transforms of samples and of their kernel, at frequencies passed."""
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
    return float((found - kernel.transform(*spread(frequencies))).abs().max())


def _sample_what_matters(kernel: ContinuousKernel) -> Tensor:
    """Sample a kernel where its samples matter to the frequencies that are passed."""
    psf = sample_with_margin(kernel)
    # A kernel that ends on the edge of a sample, up to rounding, does not touch the next one.
    kept = [_needed(psf, axis, max(0, math.ceil(reach - 0.5 - 1e-9))) for axis, reach in enumerate(kernel.reach)]
    psf = resized(psf, tuple(2 * n + 1 for n in kept))
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
        frequencies = spread([wave.double() / n for wave, n in zip([rows, *waves[1:]], sizes, strict=True)])
        part = math.prod(map(_low_pass, frequencies), start=kernel.transform(*frequencies))
        for axis in range(1, len(sizes)):
            folded = part.new_zeros([*part.shape[:axis], sizes[axis], *part.shape[axis + 1 :]])
            part = folded.index_add_(axis, waves[axis] % sizes[axis], part)
        spectrum.index_add_(0, rows % sizes[0], part.to(spectrum.dtype))
    return torch.fft.fftshift(torch.fft.ifftn(spectrum).real)


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


def make_kernel(
    text: str,
    *,
    dimensions: int | None = None,
    size: int | Size | None = None,
) -> torch.Tensor:
    """Make a kernel from the name of a source and its numbers, for instance `disk:5.2` or `motion:15@30`.

    Blurs that follow one another are a product: `disk:4*motion:9@30` is out of focus and moved. A factor
    `shift:0.3@-0.2` moves the picture down by 0.3 and to the left by 0.2 pixels. The kernel is sampled so that its
    transform is right, see `sample_kernel`; beside sharp edges it has small negative taps.

    Args:
        text: the words; lengths in samples.
        dimensions: 1 gives the kernel of signals of one axis, what lines across the last axis become.
        size: samples along each axis, odd, or one number for all; for kernels with tails, of which more then remain.

    Returns:
        Taps of shape `(kH, kW)`, or `(kD, kH, kW)` of `gaussian3d`, or `(kW,)`, float64, of odd size and of sum 1.

    Raises:
        UsageError: no such source, a number too many or too few, one that the source cannot take, or a size that is too
            small or too large.
    """
    kernel = read_formula(text, dimensions)
    psf = sample_kernel(kernel, (size,) * len(kernel.reach) if isinstance(size, int) else size)
    # A cross-correlation meets what a point becomes turned by half a turn.
    return psf.flip(tuple(range(psf.ndim)))


def read_formula(text: str, dimensions: int | None = None) -> ContinuousKernel:
    """Read what a formula describes, for the same arguments as `make_kernel`."""
    check_type(text, str, "the description of a kernel")
    factors = [factor.strip() for factor in text.split("*")]
    if len(factors) > 1 and not all(factors):
        raise UsageError(
            "a kernel must be described by blurs with * between them, such as 'disk:4*motion:9@30', but one factor is "
            f"missing in '{shortened(text)}'."
        )
    kernel = reduce(operator.mul, map(_read_factor, factors))
    return kernel.along_last() if dimensions == 1 else kernel


def name_numbers(text: str) -> str:
    """Name the numbers of the sources in a formula that take several, as in `fwhm 4, beta 2.8`."""
    factors = (factor.strip().partition(":") for factor in text.split("*"))
    known = ((KERNEL_SOURCES[name].parameters, rest.split("@")) for name, _, rest in factors if name in KERNEL_SOURCES)
    pairs = (pair for names, of in known if len(names) > 1 for pair in zip(names, of, strict=False))
    return ", ".join(f"{name.lower()} {n}" for name, n in pairs)


def _read_factor(text: str) -> ContinuousKernel:
    name, _, rest = text.partition(":")
    source: KernelSource = KERNEL_SOURCES[KERNEL_SOURCES.check(name[:40])]
    if source.read is not None and rest:
        return source.make(source.read(rest))
    numbers = read_floats(rest.split("@") if rest else [])
    if len(numbers) != len(source.parameters) or not all(map(math.isfinite, numbers)):
        raise UsageError(f"this kernel must be written {source.usage(name)}, but is '{shortened(text)}'.")
    return source.make(*numbers)


def read_floats(texts: list[str]) -> tuple[float, ...]:
    """Read numbers; none where one is no number."""
    try:
        return tuple(float(text) for text in texts)
    except ValueError:
        return ()
