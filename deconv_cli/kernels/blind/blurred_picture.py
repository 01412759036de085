"""Find the blur of a picture from the picture alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deconv_cli.errors import DeconvError, ShapeError, check_type
from deconv_cli.kernels.bead_average import full_widths
from deconv_cli.kernels.bead_psf import holds_points, kurtosis, psf_from_beads
from deconv_cli.kernels.blind.alignment import Alignment, align_by_pair, align_by_power
from deconv_cli.kernels.blind.estimate import KernelEstimate, compare_parts, estimate_family, family_names
from deconv_cli.kernels.blind.free_form import MAX_SIZE, FreeForm, free_form
from deconv_cli.kernels.blind.polar_spectrum import SIDES, PolarSpectrum, jpeg_reliance, measure_spectrum
from deconv_cli.kernels.nonnegative_taps import without_negative_taps
from deconv_cli.operators.axes import resized
from deconv_cli.operators.linear_operator import check_image, check_tensor
from deconv_cli.tone_curve import ToneCurve, white_of

LUMA = (0.299, 0.587, 0.114)
"""Of stored values in red, green and blue, as JPEG makes it (ITU-T T.871)."""
_LUMINANCE = (0.2126, 0.7152, 0.0722)
"""Of linear light in red, green and blue (ITU-R BT.709)."""
_LEAST_FREE_SIZE, _ROOM = 15, 1.5
"""Least taps a side of a kernel of free form, and least multiple of those of the family."""
_OF_STARS = "moffat"
_TRACES = 0.01
"""Of the largest row or column."""
_MAX_CHANNELS = 4
"""Of a batch of one picture; with more it is likelier a stack, whose planes are no channels."""
_PARTS_A_SIDE = 3
_WINDOW = 2048
_MUCH_LIKELIER = 20.0
"""Evidence at which a given kernel is doubted; right ones stayed below 10 on the photographs tried."""
_BEYOND_DOUBT = 100.0
"""Evidence at which the result is doubted too: no right kernel of 240 on pictures of scikit-image reached 20."""
_POINTS_WINDOW = 1024
_MOST_UNLIKE_POINTS = 0.25
"""Root mean square difference of a kernel and the profile of points, in parts of the profile. The right kernel had 0.02
to 0.21 on eight simulated fields of 8 to 1500 stars; Gaussians and Moffat functions that are 15 % too narrow have 0.23
to 0.25, disks 0.46."""
_UNEVEN = 0.1
"""Scatter of the widths of points, in parts of their width, from which on they may be no stars. Bright stars had 0.03
to 0.05, galaxies under a disk 0.13 to 0.16."""
MAX_SATURATED = 0.05
"""Part of a picture from which on saturated pixels may hide its blur: with 7 % a right kernel was accused."""
_MAX_KURTOSIS = 12.0
"""Of samples whose spectrum is that of a scene: fields of stars had 15 to 200, most photographs 1 to 6."""


@dataclass(frozen=True, eq=False)
class BlurredPicture:
    """A picture in the form in which its blur is looked for.

    Attributes:
        luminance: proportional to light, shape `(H, W)`, float32.
        luma: the signal that a JPEG compressed, from 0 to 255, shape `(H, W)`; `None` for other files.
        is_clipped: whether a channel is saturated, shape `(H, W)`; `None` if unknown.
        jpeg_table: divisors of the luma's coefficients, shape `(8, 8)`; `None` for other files.
    """

    luminance: Tensor
    luma: Tensor | None
    is_clipped: Tensor | None
    jpeg_table: Tensor | None

    @classmethod
    def of(
        cls, image: Tensor, *, tone_curve: ToneCurve | None = None, jpeg_table: Tensor | None = None
    ) -> BlurredPicture:
        """Bring a picture into this form.

        Args:
            image: samples as stored, shape `(C, H, W)`, or `(1, C, H, W)` with at most four channels.
            tone_curve: how they encode light; without it they are taken to be proportional to it.
            jpeg_table: of a JPEG, shape `(8, 8)`.

        Raises:
            ShapeError: any other shape.
            MalformedInputError: samples that are not finite.
        """
        check_image(image, "the picture")
        if tone_curve is not None:
            check_type(tone_curve, ToneCurve, "tone_curve")
        if image.ndim == 4 and image.shape[0] == 1 and image.shape[1] <= _MAX_CHANNELS:
            image = image[0]
        if image.ndim != 3:
            raise ShapeError(
                f"finding a blur needs one picture of shape (C, H, W), but the image has shape {tuple(image.shape)}; "
                "give one picture of a batch, or one plane of a stack with an axis of channels before it."
            )
        stored = image.detach().cpu().float()
        light = stored if tone_curve is None else tone_curve.to_light(stored)
        white = white_of(image) if tone_curve is None else tone_curve.white
        is_clipped = None if white is None else (stored >= white).any(0)
        luma = None if jpeg_table is None else _weighted(stored, LUMA)
        return cls(_weighted(light, _LUMINANCE), luma, is_clipped, jpeg_table)

    @property
    def saturated(self) -> float:
        """The share of saturated pixels."""
        return 0.0 if self.is_clipped is None else float(self.is_clipped.float().mean())

    def spectrum(
        self, rows: slice = slice(None), columns: slice = slice(None), side: int | None = None
    ) -> PolarSpectrum:
        """Measure the power spectrum of the picture, or of a part of it, in pieces of `side` pixels.

        Raises:
            ShapeError: it is too small.
        """
        part = rows, columns
        clipped = None if self.is_clipped is None else self.is_clipped[part]
        found = measure_spectrum(self.luminance[part], clipped=clipped, side=side)
        if self.luma is None or self.jpeg_table is None:
            return found
        stored = measure_spectrum(self.luma[part], side=found.grid.side)
        return replace(found, reliance=jpeg_reliance(stored, self.jpeg_table))

    def parts(self) -> Iterator[PolarSpectrum]:
        """Measure the power spectra of a few parts of the picture; an empty result if the picture is small."""
        rows, columns = (
            [slice(i * n // _PARTS_A_SIDE, (i + 1) * n // _PARTS_A_SIDE) for i in range(_PARTS_A_SIDE)]
            for n in self.luminance.shape
        )
        for part in itertools.product(rows, columns):
            size = self.luminance[part].shape
            if min(size) >= SIDES[-1] and math.prod(size) >= 2 * SIDES[-1] ** 2:
                yield self.spectrum(*part)


def _weighted(samples: Tensor, weights: tuple[float, float, float]) -> Tensor:
    if samples.shape[0] != len(weights):
        return samples.mean(0)
    return torch.einsum("chw,c->hw", samples, samples.new_tensor(weights))


def estimate_kernel(
    image: Tensor,
    *,
    tone_curve: ToneCurve | None = None,
    jpeg_table: Tensor | None = None,
    families: Sequence[str] | None = None,
) -> KernelEstimate:
    """Find which kernel blurred a picture, from the picture alone.

    The families are disks, polygons, Gaussians, straight motions and so on. The likelihood of the picture's power
    spectrum decides between them, and says how sure the numbers are. "No blur" is one of the answers. A blur that may
    be a soft scene is looked for again in parts of the picture. If most of the light lies in isolated points, their
    profile must be the kernel's.

    Args:
        image: samples as stored, shape `(C, H, W)` or `(1, C, H, W)`, at least 64 × 128 pixels.
        tone_curve: how they encode light, such as `ToneCurve.srgb(255)`; without it they count as proportional to it.
            An optical blur acts on light.
        jpeg_table: divisors of the luma of a JPEG, shape `(8, 8)`: frequencies that it rounded away are not relied on.
        families: kernel sources to choose from; by default all that can be found, but `moffat` only without a tone
            curve: it describes stars, and a soft scene in a photograph would pass for its wings.

    Raises:
        ShapeError: no picture, or one that is too small.
        MalformedInputError: samples that are not finite.
        UsageError: an unknown family.
    """
    if families is None and tone_curve is not None:
        families = [name for name in family_names() if name != _OF_STARS]
    picture = BlurredPicture.of(image, tone_curve=tone_curve, jpeg_table=jpeg_table)
    saturated, found = picture.saturated, estimate_family(picture.spectrum(), families)
    if not found.found and saturated > MAX_SATURATED:  # what is sharp may lie beside saturated pixels alone
        picture = replace(picture, is_clipped=None)
        found = estimate_family(picture.spectrum(), families)
    found = compare_parts(found, picture.parts())
    found, doubt = replace(found, saturated=saturated), doubt_points(found, picture)
    return found if doubt is None else replace(found.without_errors(), doubt=doubt)


def doubt_points(found: KernelEstimate, picture: BlurredPicture) -> str | None:
    """Doubt a kernel that differs from the profile of the isolated points in the middle of a picture, if it has such.

    Their spectrum is not that of a scene, from which the kernel was found.
    """
    light = _middle(picture.luminance, _POINTS_WINDOW)
    if not found.found or not holds_points(light):
        return None
    full = None if picture.is_clipped is None else picture.luminance[picture.is_clipped]
    try:
        profile = psf_from_beads(light, white=float(full.min()) if full is not None and len(full) else None)
    except DeconvError:  # no point is alone
        return f"the spectrum of isolated points is not that of a scene, so the kernel {found.text} is a guess"
    taps, points = found.taps(), profile.kernel
    across = list(zip(full_widths(taps[None])[0].tolist(), profile.widths, profile.scatter, strict=True))
    is_uneven = any(scatter > _UNEVEN * width for _, width, scatter in across)
    if is_uneven and all(0.85 * width < own < 1.05 * width for own, width, _ in across):
        return None  # galaxies, or noise: only the widths can be compared
    both = tuple(max(pair) | 1 for pair in zip(taps.shape, points.shape, strict=True))
    taps, points = resized(taps, both), resized(points, both)
    if float((taps - points).norm() / points.norm()) <= _MOST_UNLIKE_POINTS:
        return None
    return f"most of the light lies in isolated points, which do not have the profile of the kernel {found.text}"


def estimate_free_kernel(
    image: Tensor,
    *,
    start: KernelEstimate | None = None,
    size: int | None = None,
    tone_curve: ToneCurve | None = None,
) -> FreeForm:
    """Find a kernel of free form, such as that of a camera shaken along a curve, from the picture alone.

    Args:
        image: samples as stored, shape `(C, H, W)` or `(1, C, H, W)`.
        start: the result of `estimate_kernel`; by default it is computed.
        size: taps a side of its support, odd; by default somewhat more than the start reaches.
        tone_curve: how the samples encode light.

    Raises:
        ShapeError: no picture, or one that is too small.
        MalformedInputError: samples that are not finite, or all alike.
        UsageError: a size that is even, or too large.
    """
    picture = BlurredPicture.of(image, tone_curve=tone_curve)
    found = estimate_family(picture.spectrum()) if start is None else start
    taps = without_negative_taps(found.taps(), 2)
    if size is None:
        room = min(MAX_SIZE, min(picture.luminance.shape) // 4)
        wanted = max(_LEAST_FREE_SIZE, round(_ROOM * _extent(taps)))
        size = (min(wanted, room) - 1) // 2 * 2 + 1
    return free_form(picture.luminance, taps, size=size)


def _extent(taps: Tensor) -> int:
    """Count the rows or columns, whichever are more, that hold more than traces of a kernel."""
    sums = (taps.sum(1), taps.sum(0))
    return max(int((along > _TRACES * along.max()).sum()) for along in sums)


def describe_alignment(
    kernel: Tensor, image: Tensor, *, tone_curve: ToneCurve | None = None, jpeg_table: Tensor | None = None
) -> tuple[tuple[str, ...], bool]:
    """Give a sentence if the kernel is much likelier turned, mirrored or scaled, judged on the middle of the picture.

    The second value is whether that is beyond doubt, and the kernel not merely too small, which does less harm.

    If much of the picture is saturated, both the whole and the pixels far from the saturated ones must speak against
    the kernel. What to change is read from the latter, since saturated edges hide the size of a blur. The kernel has
    the shape `(kH, kW)`, the image as stored `(C, H, W)` or `(1, C, H, W)`; see `BlurredPicture.of`.
    """
    try:
        picture = BlurredPicture.of(_middle(image, _WINDOW), tone_curve=tone_curve, jpeg_table=jpeg_table)
        if kurtosis(picture.luminance) > _MAX_KURTOSIS:
            return (), False
        found = align_by_power(kernel, picture.spectrum())
        if picture.saturated > MAX_SATURATED and found.evidence >= _MUCH_LIKELIER:
            whole = align_by_power(kernel, replace(picture, is_clipped=None).spectrum())
            found = replace(found, evidence=min(found.evidence, whole.evidence))
    except DeconvError:  # too small or too flat a picture, or too large a kernel
        return (), False
    if found.evidence < _MUCH_LIKELIER:
        return (), False
    changes, is_small = ", ".join(found.orientation_changes), found.scale is not None and found.scale > 1
    sentence = (
        f"the picture fits the kernel better if it is {changes}: {found.evidence:+.1f} in log-likelihood; deconv "
        "kernel align writes the corrected kernel"
    )
    if found.scale is None:
        sentence = (
            f"the kernel is {changes} than the blur of the picture; find the blur in the picture with deconv kernel "
            "estimate"
        )
    return (sentence,), found.evidence >= _BEYOND_DOUBT and found.is_explained and not is_small


def _middle(image: Tensor, side: int) -> Tensor:
    """Crop an image `(*, H, W)` to `side` pixels around its middle, by whole blocks of a JPEG."""
    height, width = (min(n, side) for n in image.shape[-2:])
    top, left = ((n - kept) // 16 * 8 for n, kept in zip(image.shape[-2:], (height, width), strict=True))
    return image[..., top : top + height, left : left + width]


def align_kernel(
    kernel: Tensor,
    image: Tensor,
    *,
    sharp: Tensor | None = None,
    tone_curve: ToneCurve | None = None,
    sharp_curve: ToneCurve | None = None,
    jpeg_table: Tensor | None = None,
) -> Alignment:
    """Find out whether a kernel is transposed, mirrored, scaled or off its center for a picture, and correct it.

    Args:
        kernel: shape `(kH, kW)`.
        image: the blurred picture as stored, shape `(C, H, W)` or `(1, C, H, W)`.
        sharp: the picture without the blur, of the same shape. Without it the power spectrum judges, which shows
            neither a shift nor a turn by 180°; a kernel is then centered on its weight.
        tone_curve: how the samples encode light.
        sharp_curve: how those of the sharp picture do; by default the same.
        jpeg_table: of a JPEG, shape `(8, 8)`.

    Raises:
        ShapeError: shapes that do not fit.
        MalformedInputError: samples that are not finite.
    """
    check_tensor(kernel, "the kernel")
    if kernel.ndim != 2:
        raise ShapeError(f"aligning needs a kernel of shape (kH, kW), but this one has {tuple(kernel.shape)}.")
    picture = BlurredPicture.of(image, tone_curve=tone_curve, jpeg_table=jpeg_table)
    if sharp is None:
        return align_by_power(kernel, picture.spectrum())
    return align_by_pair(
        kernel, BlurredPicture.of(sharp, tone_curve=sharp_curve or tone_curve).luminance, picture.luminance
    )
