"""The point-spread function of a microscope from a picture or a stack of small beads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from deconv_cli.errors import ShapeError, UntrustworthyResultError, UsageError
from deconv_cli.kernels.bead_average import (
    BeadAverage,
    average_beads,
    fit_beads,
    full_widths,
    near_places,
    take_off_size,
)
from deconv_cli.measured_light import above_noise, connected, plateau_of, smooth
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import crop, resized
from deconv_cli.operators.linear_operator import check_image
from deconv_cli.parts import ShownInNotebook
from deconv_cli.tone_curve import white_of
from deconv_cli.vocabulary import Size, format_size

THRESHOLD = 8.0
"""Height of a bead above the background, in standard deviations of the smoothed noise."""
RING = 0.2
"""A maximum beside one that is so much brighter is a ring of it, and no bead."""
CLIP, N_CLIPS = 3.0, 8
TAILS = 0.2
"""Tails fill a stack if its darkest place, smoothed, is this many standard deviations below the rest."""
NEAR = 1.25
"""Beads are too close within this many half widths of the window."""


@dataclass(frozen=True)
class BeadCensus:
    """The maxima that stand out of the background.

    Attributes:
        used: places of the beads that are fit, shape `(n, n_axes)`, whole numbers; `heights` are smoothed, above the
            background.
        others: places of the beads that are not; `other_heights` are theirs.
        n_crowded: beads with another one too close.
        n_saturated: beads with a sample that is full.
        n_at_edge: beads whose window reaches out of the picture.
        is_background: samples far from every bead, of the shape of the picture.
    """

    used: Tensor
    others: Tensor
    heights: Tensor
    other_heights: Tensor
    n_crowded: int
    n_saturated: int
    n_at_edge: int
    is_background: Tensor


OF_POINTS = 20.0
"""Least kurtosis of light in isolated points. Fields of 8 to 800 stars had 20 to 870."""
OF_ALL_LIGHT = 0.4
"""Most of the light that the brightest point holds. In the fields of stars it held at most 0.38. The moon and a cell
have as large a kurtosis, but one spot holds at least 0.5 of their light. Of 25 pictures of other things one passed, a
launch at night."""
EVEN_GROUND = 10.0
"""How much more than the noise of neighboring pixels the ground between points varies. In fields of stars it was at
most 5 times as much, in photographs with few bright spots 15 to 140 times."""
WIDER = 10
"""How many times more pixels of a spot that outshines stars may exceed half its height than those of the next spot.
Full stars had 8 times more, a crater of the moon 13 times."""
WIDEST_POINT = 512
"""Pixels along each side around the brightest point in which its light is added up."""


def clipped_mean(values: Tensor) -> tuple[float, float]:
    """Give mean and standard deviation of values less those that stand out, iteratively."""
    kept = values.flatten()
    for _ in range(N_CLIPS):
        middle, spread = kept.median(), kept.std()
        inside = (kept - middle).abs() <= CLIP * spread
        if bool(inside.all()):
            break
        kept = kept[inside]
    return float(kept.mean()), float(kept.std()) if len(kept) > 1 else 0.0


def kurtosis(samples: Tensor) -> float:
    """Compute the fourth central moment over the square of the second: large if few bright points hold the light."""
    squares = samples.to(torch.float64, copy=True)
    squares = squares.sub_(squares.mean()).square_()
    variance = squares.mean()
    return synchronize.as_number(squares.square_().mean() / variance.square().clamp_min(1e-300))


def holds_points(light: Tensor, *, n_wider: int = 0) -> bool:
    """Return whether most of the light of a picture, shape `(H, W)`, lies in isolated points, as stars and beads do.

    One point may outshine the others, so the rest is then judged without it. `n_wider` counts its pixels above half its
    height.
    """
    if kurtosis(light) <= OF_POINTS:
        return False
    level, noise = clipped_mean(light)
    differences = light.diff(dim=0).diff(dim=1).abs()
    differences = differences[differences > 0]
    if len(differences) and noise > EVEN_GROUND * float(differences.median()) / (2 * 0.6745):  # of normal noise
        return False
    above = (light - level - CLIP * noise).clamp_min(0)
    row, column = divmod(int(above.argmax()), above.shape[1])
    height, width = (min(n, WIDEST_POINT) for n in above.shape)
    to_center = (height // 2 - row, width // 2 - column)
    centered = above.roll(to_center, (0, 1))[:height, :width]
    point, n_wide = connected(centered), int((connected((centered - centered.max() / 2).clamp_min(0)) > 0).sum())
    is_spread = bool(point.sum() < OF_ALL_LIGHT * above.sum())
    if is_spread or n_wider or not n_wide:
        return is_spread and n_wider <= WIDER * n_wide
    rest = light.roll(to_center, (0, 1))
    rest[:height, :width][point > 0] = level
    return holds_points(rest, n_wider=n_wide)


def find_maxima(image: Tensor) -> tuple[Tensor, Tensor]:
    """Find what stands out of the background; gives places `(n, n_axes)` and heights, the highest first."""
    level, noise = clipped_mean(image)
    n_axes = image.ndim
    pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[n_axes - 1]
    highest = pool(image[None, None], 3, stride=1, padding=1)[0, 0]
    places = ((image == highest) & (image > level + THRESHOLD * max(noise, 1e-12))).nonzero()
    heights = image[tuple(places.T)] - level
    order = heights.argsort(descending=True)
    return places[order], heights[order]


def take_census(image: Tensor, size: Size, white: float | None) -> BeadCensus:
    """Sort out the maxima of a picture by windows of an odd size; `white` is the value of a full sample, if any."""
    places, heights = find_maxima(smooth(image))
    half = torch.tensor([n // 2 for n in size])
    distance = (places[:, None] - places[None]).abs()
    is_near = (distance <= NEAR * half).all(-1) & ~torch.eye(len(places), dtype=torch.bool)
    is_ring = (is_near & (heights[:, None] < RING * heights[None])).any(1)
    is_crowded = (is_near & ~is_ring[None]).any(1) & ~is_ring
    shape = torch.tensor(image.shape)
    is_at_edge = ((places < half + 1) | (places > shape - half - 2)).any(1) & ~is_ring
    is_full = torch.zeros(len(places), dtype=torch.bool)
    if white is not None:
        boxes = (
            [slice(max(a - b, 0), a + b + 1) for a, b in zip(place, half.tolist(), strict=True)]
            for place in places.tolist()
        )
        is_full = torch.tensor([bool((image[tuple(box)] >= white).any()) for box in boxes], dtype=torch.bool)
    is_full &= ~is_ring
    is_used = ~(is_ring | is_crowded | is_full | is_at_edge)
    return BeadCensus(
        used=places[is_used],
        others=places[~is_used & ~is_ring],
        heights=heights[is_used],
        other_heights=torch.where(is_full, 0.0, heights)[~is_used & ~is_ring],  # that of a saturated one is unknown
        n_crowded=int((is_crowded & ~is_full).sum()),
        n_saturated=int(is_full.sum()),
        n_at_edge=int((is_at_edge & ~is_crowded & ~is_full).sum()),
        is_background=~near_places(places, size, image.shape),
    )


def background_of(image: Tensor, census: BeadCensus) -> float:
    """Estimate the background far from all beads, or in the darkest place where their tails fill the image."""
    everywhere = image[census.is_background]
    if not len(everywhere):
        return float(image.min())
    level, noise = clipped_mean(everywhere)
    lights, shares = image, torch.ones_like(image)
    for step in (1, 2, 4):
        lights, shares = (smooth(each, step, "constant") for each in (lights, shares))
    darkest = float((lights / shares).min())
    return darkest if image.ndim == 3 and level - darkest > TAILS * noise else level


def cut_windows(image: Tensor, places: Tensor, size: Size) -> Tensor:
    """Cut windows of a size around places, shape `(n, *size)`."""
    return torch.stack(
        [crop(image, tuple(int(p) - n // 2 for p, n in zip(place, size, strict=True)), size) for place in places]
    )


WIDTHS = 5.0
"""Side of the windows in which beads are found and aligned, in full widths at half maximum."""
MOST_UNKNOWN = 0.05
"""Largest number of samples of a template for each bead, in samples of the image."""
MOST_ACROSS = 127
"""Largest extent of a bead's light along an axis, in samples."""
LEFT_OUT = 0.005
"""Share of that light that may lie outside the point-spread function along each axis."""
LEAST_SIDE, FIRST_SIDE = 9, 15
SEEN_OF_A_BEAD = 0.8
"""Full width at half maximum of a ball without any blur, in its diameter."""


@dataclass(frozen=True, eq=False)
class BeadPsf(ShownInNotebook):
    """A point-spread function that was measured, and how.

    Attributes:
        psf: picture of a point, shape `(H, W)` or `(D, H, W)`, float64, of sum 1, centered on the middle sample.
        widths: full width at half maximum along each axis, in samples.
        scatter: standard deviation of the widths of single beads along each axis.
        n_used: number of beads that were averaged.
        census: number of beads that were not used, and why.
        n_unlike: number of beads that were not used because they do not look like the others.
        background: of the image, without the light of any bead.
        share: share of a bead's light within the size, of the light that stands out of the noise.
        full: the value from which on samples counted as saturated; `None` if none has a known one.
        outermost: light of the outermost planes of a stack divided by that of the middle plane; `None` for a picture.
    """

    psf: Tensor
    widths: tuple[float, ...]
    scatter: tuple[float, ...]
    n_used: int
    census: BeadCensus
    n_unlike: int
    background: float
    share: float
    outermost: float | None
    full: float | None

    def __repr__(self) -> str:
        """Describe it in one line."""
        return f"BeadPsf({format_size(self.psf.shape)} samples of {self.n_used} beads)"

    @property
    def kernel(self) -> Tensor:
        """The taps of a cross-correlation, as `forward` and `invert` take them."""
        return self.psf.flip(tuple(range(self.psf.ndim)))


def psf_from_beads(
    image: Tensor,
    *,
    size: Size | None = None,
    bead_diameter: float = 0.0,
    spacing: Sequence[float] | None = None,
    white: float | None = None,
) -> BeadPsf:
    """Measure a point-spread function.

    Args:
        image: beads on an even background, shape `(H, W)` or `(D, H, W)`.
        size: of the point-spread function in samples, odd, or only the planes of a stack; by default it holds the light
            that stands out of the noise.
        bead_diameter: of the beads, in the unit of the spacing; its blur is removed. 0 for points.
        spacing: distance of neighboring samples along each axis; `None` for 1.
        white: the value of a full sample; `None` takes that of the dtype, if it holds whole numbers. If no sample
            reaches it, a largest value at which samples look clipped is taken.

    Raises:
        ShapeError: another number of axes.
        UsageError: an impossible size or diameter.
        MalformedInputError: samples that are not finite.
        UntrustworthyResultError: no bead can be measured.
    """
    check_image(image, "the image of beads")
    samples = image.detach().cpu().double()
    if samples.ndim not in (2, 3):
        raise ShapeError(f"an image of beads must have the shape (H, W) or (D, H, W), but has {tuple(image.shape)}.")
    if min(samples.shape) < LEAST_SIDE:
        raise ShapeError(
            f"an image of beads should have {LEAST_SIDE} samples or more along each axis, but is {tuple(image.shape)}."
        )
    white = white_of(image) if white is None else white
    if white is None or bool(samples.max() < white):
        white = plateau_of(samples)
    step = tuple(spacing) if spacing is not None else (1.0,) * samples.ndim
    if len(step) != samples.ndim or min(step) <= 0:
        raise UsageError(f"spacing must hold a positive number for each of {samples.ndim} axes, but is {spacing}.")
    if not 0 <= bead_diameter < math.inf:
        raise UsageError(f"bead_diameter must be zero or a positive number, but is {bead_diameter}.")
    wanted = () if size is None else _checked(size, samples.ndim)
    window = _window_of(samples)
    census = take_census(samples, window, white)
    if not len(census.used):
        raise UntrustworthyResultError(
            f"no bead can be measured in a window of {format_size(window)} samples: "
            f"{describe_census(census) or 'none stands out of the background'}; take a picture with single beads."
        )
    windows = cut_windows(samples, census.used, window)
    local = windows.flatten(1).median(1).values.reshape(-1, *[1] * samples.ndim)
    average = average_beads(windows - local)
    background = background_of(samples, census)
    whole = _light_of(samples - background, census, average, window)
    psf = resized(whole, (*wanted, *_holding(whole)[len(wanted) :]))
    share = float(psf.sum() / whole.sum())
    if bead_diameter > 0:
        seen = [float(width) * length for width, length in zip(full_widths(psf[None])[0], step, strict=True)]
        if SEEN_OF_A_BEAD * bead_diameter > min(seen):
            raise UsageError(
                f"beads of diameter {bead_diameter:g} would look wider than these beads, whose full widths at half "
                f"maximum are {' × '.join(f'{width:.3g}' for width in seen)}; give bead_diameter and spacing in one "
                "unit."
            )
        psf = take_off_size(psf, bead_diameter, step)
    psf = psf.clamp_min(0)
    if not psf.sum() > 0:
        raise UntrustworthyResultError(
            "no light of the beads stands out of the background: they are darker, or the tails of something brighter, "
            "such as a saturated star, cover them; give a picture or a part of one with bright beads on a dark ground."
        )
    widths, planes = full_widths(average.aligned[average.is_used]), psf.sum((-2, -1))
    return BeadPsf(
        psf=psf / psf.sum(),
        widths=tuple(full_widths(psf[None])[0].tolist()),
        scatter=tuple(_scatter(column) for column in widths.T),
        n_used=int(average.is_used.sum()),
        census=census,
        n_unlike=int((~average.is_used).sum()),
        background=background,
        share=share,
        outermost=float(0.5 * (planes[0] + planes[-1]) / planes[len(planes) // 2]) if psf.ndim == 3 else None,
        full=white,
    )


def _light_of(image: Tensor, census: BeadCensus, average: BeadAverage, window: Size) -> Tensor:
    """Measure the light that the used beads share and that stands out of the noise, beside the tails of others."""
    places = torch.cat([census.used + average.shifts, census.others.double()])
    light = average.heights[average.is_used] / census.heights[average.is_used]
    heights = torch.cat([average.heights, census.other_heights * light.median()])
    unlike = torch.cat([census.used[~average.is_used], census.others])
    weights = (~near_places(unlike, window, image.shape)).to(image.dtype)
    # With as many unknowns as samples the fit would take up the noise far from the beads.
    depth = math.prod(image.shape[:-2])
    across = min(MOST_ACROSS, int(math.sqrt(MOST_UNKNOWN * len(heights) * image.numel() / depth)) // 2 * 2 + 1)
    size = tuple(
        min(n - 1 + n % 2, across if axis else MOST_ACROSS) for axis, n in enumerate(image.shape, image.ndim == 2)
    )
    return connected(above_noise(*fit_beads(image, places, heights, weights, size, average.template)))


def _holding(light: Tensor) -> Size:
    """Return the size around the middle that holds all of the light except `LEFT_OUT` along each axis."""
    size = []
    for axis, n in enumerate(light.shape):
        line = light.sum([other for other in range(light.ndim) if other != axis])
        folded = torch.cat([line[n // 2 : n // 2 + 1], line[n // 2 + 1 :] + line[: n // 2].flip(0)]).cumsum(0)
        half = int((folded < (1 - LEFT_OUT) * folded[-1]).sum())
        size.append(2 * min(max(half, LEAST_SIDE // 2), n // 2) + 1)
    return tuple(size)


def describe_census(census: BeadCensus) -> str:
    """Say how many beads were not used, and why; empty if all were."""
    counts = {
        "too close to another": census.n_crowded,
        "saturated": census.n_saturated,
        "at the edge": census.n_at_edge,
    }
    return ", ".join(f"{n} {why}" for why, n in counts.items() if n)


def _checked(size: Size, n_axes: int) -> Size:
    is_length = len(size) == n_axes or (len(size) == 1 and n_axes == 3)
    if not is_length or not all(isinstance(n, int) and n > 2 and n % 2 for n in size):
        raise UsageError(
            f"size must hold an odd number of samples, 3 or more, for each of {n_axes} axes, but is {size}."
        )
    return tuple(size)


def _window_of(values: Tensor) -> Size:
    """Choose the window from the width of the brightest beads."""
    places, heights = find_maxima(smooth(values))
    first = tuple(min(FIRST_SIDE, n - 3 + n % 2) for n in values.shape)
    half = torch.tensor([n // 2 for n in first])
    fits = ((places >= half) & (places < torch.tensor(values.shape) - half)).all(1)
    chosen = places[fits & (heights > 0.3 * heights[:1].max())][:50] if len(places) else places
    if not len(chosen):
        return first
    level, _ = clipped_mean(values)
    found = full_widths(cut_windows(values, chosen, first) - level).nanmedian(0).values.nan_to_num(FIRST_SIDE / 2)
    sides = [max(LEAST_SIDE, 2 * math.ceil(WIDTHS * float(width) / 2) + 1) for width in found]
    return tuple(min(side, n - 3 + n % 2) for side, n in zip(sides, values.shape, strict=True))


def _scatter(widths: Tensor) -> float:
    known = widths[torch.isfinite(widths)]
    return float(known.std()) if len(known) > 1 else math.nan
