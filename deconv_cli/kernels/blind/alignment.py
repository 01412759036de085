"""Whether a kernel fits the picture: turned, mirrored, scaled or off its center."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from deconv_cli.errors import ShapeError
from deconv_cli.kernels.blind.polar_spectrum import PolarSpectrum, hann_window
from deconv_cli.kernels.blind.spectrum_fit import fit_spectrum
from deconv_cli.kernels.sources.formula import make_kernel
from deconv_cli.measured_light import center_of_mass
from deconv_cli.vocabulary import format_size

Choice = TypeVar("Choice", str, float)

ORIENTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "as given": lambda taps: taps,
    "transposed": lambda taps: taps.T,
    "mirrored left to right": lambda taps: taps.flip(1),
    "turned by 90°": lambda taps: taps.rot90(1, (0, 1)),
    "turned by 180°": lambda taps: taps.flip((0, 1)),
    "mirrored top to bottom": lambda taps: taps.flip(0),
    "turned by 270°": lambda taps: taps.rot90(3, (0, 1)),
    "transposed and turned by 180°": lambda taps: taps.T.flip((0, 1)),
}
_N_SEEN_IN_POWER = 4
"""A spectrum of powers does not tell a kernel from itself turned by 180°, so that the last four equal the first."""
SCALES = (
    *(0.2, 0.24, 0.3, 0.35, 0.42, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    *(1.11, 1.25, 1.43, 1.67, 2.0, 2.4, 2.9, 3.5, 4.2, 5.0),
)
LARGEST_SCALE = 2.0
"""A factor beyond it, or below its inverse, is tried but not advised: the likeliest at the end of a range misleads."""
LEAST_EVIDENCE = 12.0
"""A mistake is named where the corrected kernel is so much likelier, in logarithms."""
PLAIN = (
    *(f"disk:{radius}" for radius in (1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 8)),
    *(f"gaussian:{sigma}" for sigma in (0.7, 1, 1.4, 2, 2.8, 4)),
)
OTHER_SHAPE, PART_OF_GAIN = 50.0, 0.7
"""A kernel is of another shape where a plain one is so much likelier than it is in any turn and size, in logarithms,
and by more than this part of what turn and size gain: a disk between two sizes gains half of that, a motion 0.95."""
MOST_MISFIT = 0.2
"""Misfit for each cell of a spectrum, of the best kernel, up to which that kernel explains it. Charts of squares and of
lines, blurred by kernels that were wrongly accused, left 0.21 to thousands."""
_ALIKE = 1e-6
"""Of the largest tap: a kernel that changes so little when it is turned is symmetric."""
_LEAST_SHIFT = 0.75
"""Pixels that the weight of a kernel may lie off its middle tap; of a kernel of even size half a pixel always does."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """How a kernel is to be corrected.

    Attributes:
        orientation: a key of `ORIENTATIONS`.
        scale: of its size; `None` if the kernel is of quite another size or shape, which leaves it as given.
        shift: pixels by which its weight is moved, down and to the right.
        taps: the corrected kernel, shape `(kH, kW)`, of the sum that it had.
        evidence: how much likelier it is than the one given, in logarithms.
        is_explained: whether any kernel explains the spectrum, as it does not that of a chart of squares or lines.
    """

    orientation: str
    scale: float | None
    shift: tuple[int, int]
    taps: Tensor
    evidence: float
    is_explained: bool = True

    @property
    def orientation_changes(self) -> tuple[str, ...]:
        """How it is to be turned and scaled, a few words each."""
        if self.scale is None:
            return ("of quite another size or shape",)
        found = [] if self.orientation == "as given" else [self.orientation]
        return tuple(found if self.scale == 1.0 else [*found, f"scaled by {self.scale:.3g}"])

    @property
    def changes(self) -> tuple[str, ...]:
        """The corrections, a few words each; empty if nothing is wrong."""
        if self.shift == (0, 0):
            return self.orientation_changes
        return (*self.orientation_changes, f"moved by {self.shift[0]:+d} pixels down and {self.shift[1]:+d} across")


def align_by_power(taps: Tensor, spectrum: PolarSpectrum) -> Alignment:
    """Find how a kernel `(kH, kW)` must be turned and scaled to explain the spectrum of a picture, and center it.

    The spectrum is that of the light in which the kernel acts.

    Raises:
        ShapeError: the kernel is larger than the pieces of the spectrum.
        MalformedInputError: the picture holds no detail.
    """
    taps = taps.double()
    fitting = [s for s in SCALES if s * max(taps.shape) <= spectrum.grid.side]
    choices = [(turn, scale) for turn in _turns_seen_in_power(taps) for scale in fitting]
    if ("as given", 1.0) not in choices:
        raise ShapeError(
            f"this picture allows kernels of at most {spectrum.grid.side} × {spectrum.grid.side} taps, but the kernel "
            f"has {taps.shape[0]} × {taps.shape[1]}."
        )
    gains = torch.stack([spectrum.grid.gain(_unit(scaled(ORIENTATIONS[turn](taps), scale))) for turn, scale in choices])
    misfits = dict(zip(choices, fit_spectrum(spectrum, gains).tolist(), strict=True))
    plain = torch.stack([spectrum.grid.gain(make_kernel(text)) for text in PLAIN])
    least = float(fit_spectrum(spectrum, plain, is_coarse=True).min())  # at least the misfit of a full fit
    given, best = misfits["as given", 1.0], min(misfits.values())
    turn, scale, evidence = _chosen(misfits)
    if best - least > max(OTHER_SHAPE, PART_OF_GAIN * (given - best)):
        scale, evidence = None, given - least
    is_explained = min(best, least) < MOST_MISFIT * len(spectrum.power)
    return replace(_corrected(taps, turn, scale, evidence), is_explained=is_explained)


def align_by_pair(taps: Tensor, sharp: Tensor, blurred: Tensor) -> Alignment:
    """Find how a kernel `(kH, kW)` must be turned, scaled and moved to make a blurred picture `(H, W)` of a sharp one.

    Raises:
        ShapeError: the pictures differ in shape, or are smaller than the kernel.
    """
    if sharp.shape != blurred.shape:
        raise ShapeError(
            f"the sharp and the blurred picture must have the same size, but have {format_size(sharp.shape)} and "
            f"{format_size(blurred.shape)} pixels; crop them to the same frame."
        )
    if any(k > n for k, n in zip(taps.shape, sharp.shape, strict=True)):
        raise ShapeError(
            f"a kernel of {format_size(taps.shape)} taps is larger than the pictures of {format_size(sharp.shape)} "
            "pixels; give the kernel that blurred them."
        )
    taps = taps.double()
    pictures = (picture.double() for picture in (sharp, blurred))
    windowed = [(picture - picture.mean()) * hann_window(picture.shape) for picture in pictures]
    spectra = [torch.fft.rfft2(picture) for picture in windowed]
    found: dict[tuple[str, float], float] = {}
    shifts: dict[tuple[str, float | None], tuple[int, int]] = {}
    for turn, make in ORIENTATIONS.items():
        for scale in SCALES:
            resized = _unit(scaled(make(taps), scale))
            if any(k > n for k, n in zip(resized.shape, sharp.shape, strict=True)):
                continue
            found[turn, scale], shifts[turn, scale] = _pair_misfit(resized, spectra, windowed[1])
    turn, chosen, evidence = _chosen(found)
    return _corrected(taps, turn, chosen, evidence, shifts.get((turn, chosen)))


def scaled(taps: Tensor, scale: float) -> Tensor:
    """Resample a kernel to another size, the sum kept."""
    if scale == 1.0:
        return taps
    size = [
        max(1, 2 * round((n * scale - 1) / 2) + 1) if n % 2 else max(2, 2 * round(n * scale / 2)) for n in taps.shape
    ]
    grids = [
        torch.linspace(-m / (n * scale), m / (n * scale), m + 1).double() for m, n in zip(size, taps.shape, strict=True)
    ]
    rows, columns = ((grid[1:] + grid[:-1]) / 2 for grid in grids)
    at = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)
    sampled = torch.nn.functional.grid_sample(taps[None, None], at[None], mode="bilinear", align_corners=False)[0, 0]
    return sampled * (taps.sum() / sampled.sum()) if float(sampled.sum()) else taps


def _turns_seen_in_power(taps: Tensor) -> list[str]:
    """List the orientations in which a kernel is another one, of those that powers tell apart."""
    found: dict[str, Tensor] = {}
    for name in list(ORIENTATIONS)[:_N_SEEN_IN_POWER]:
        turned = ORIENTATIONS[name](taps)
        alike = (other for other in found.values() if other.shape == turned.shape)
        if not any(float((turned - other).abs().max()) < _ALIKE * float(taps.abs().max()) for other in alike):
            found[name] = turned
    return list(found)


def _chosen(misfits: dict[tuple[str, float], float]) -> tuple[str, float | None, float]:
    """Turn a kernel, and scale it, only where that makes it clearly likelier; no scale explains quite another size."""
    best: dict[str, float] = {}
    for (turn, _), misfit in misfits.items():
        best[turn] = min(misfit, best.get(turn, math.inf))
    turn = _unless_as_likely("as given", best)
    of_scales = {s: misfit for (t, s), misfit in misfits.items() if t == turn}
    scale = _unless_as_likely(1.0, of_scales)
    is_advised = scale == 1.0 or 1 / LARGEST_SCALE <= scale <= min(LARGEST_SCALE, sorted(of_scales)[-2])
    return turn, scale if is_advised else None, misfits["as given", 1.0] - misfits[turn, scale]


def _unless_as_likely(given: Choice, misfits: Mapping[Choice, float]) -> Choice:
    likeliest = min(misfits, key=misfits.__getitem__)
    return given if misfits.get(given, math.inf) - misfits[likeliest] < LEAST_EVIDENCE else likeliest


def _corrected(
    taps: Tensor, turn: str, scale: float | None, evidence: float, shift: tuple[int, int] | None = None
) -> Alignment:
    """Correct a kernel, without a known shift by centering its weight; no scale leaves it as given."""
    if scale is None:
        return Alignment("as given", None, (0, 0), taps, evidence)
    resized = scaled(ORIENTATIONS[turn](taps), scale)
    shift = _shift_to_middle(resized) if shift is None else shift
    return Alignment(turn, scale, shift, _moved(resized, shift), evidence)


def _shift_to_middle(taps: Tensor) -> tuple[int, int]:
    """Give the shift of the weight of a kernel to its middle; none if it lies close to it, or the taps cancel out."""
    if abs(float(taps.sum())) < 1e-3 * float(taps.abs().sum()):
        return 0, 0
    down, across = (float(at) - (n - 1) / 2 for at, n in zip(center_of_mass(taps), taps.shape, strict=True))
    return (0, 0) if max(abs(down), abs(across)) < _LEAST_SHIFT else (-round(down), -round(across))


def _moved(taps: Tensor, by: tuple[int, int]) -> Tensor:
    """Move the weight of a kernel within a support that grows on both sides, so that its middle stays the middle."""
    down, across = by
    padded = torch.nn.functional.pad(taps, (abs(across), abs(across), abs(down), abs(down)))
    return padded.roll((down, across), (0, 1))


def _unit(taps: Tensor) -> Tensor:
    total = float(taps.sum())
    return taps / total if abs(total) > 1e-12 else taps


def _pair_misfit(taps: Tensor, spectra: list[Tensor], blurred: Tensor) -> tuple[float, tuple[int, int]]:
    """Compare blurred with sharp under a kernel, at the best shift and contrast, as a Gaussian log-likelihood."""
    size = (blurred.shape[0], blurred.shape[1])
    # A cross-correlation about tap (k − 1) // 2.
    placed = torch.zeros(size, dtype=torch.float64)
    placed[: taps.shape[0], : taps.shape[1]] = taps
    placed = placed.roll((-((taps.shape[0] - 1) // 2), -((taps.shape[1] - 1) // 2)), (0, 1))
    predicted = spectra[0] * torch.fft.rfft2(placed).conj()
    match = torch.fft.irfft2(spectra[1] * predicted.conj(), s=size)
    best = int(match.argmax())
    down, across = ((i + n // 2) % n - n // 2 for i, n in zip(divmod(best, size[1]), size, strict=True))
    power = float(torch.fft.irfft2(predicted, s=size).square().sum())
    total = float(blurred.square().sum())
    left = max(1 - float(match.max()) ** 2 / (power * total), 1e-12) if power and total else 1.0
    # About one independent sample in sixteen: what the kernel does not explain is not white.
    misfit = 0.5 * blurred.numel() / 16 * math.log(left)
    # blurred(r) = Σ k(t) sharp(r + t − s): the kernel moves against the picture.
    return misfit, (-down, -across)
