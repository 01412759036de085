"""Preview tiles: parts of a large picture that are restored to choose for all blocks, and for the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TypeVar

from torch import Tensor

from deconv_cli.blocks.block_grid import Interval
from deconv_cli.blocks.block_problem import BlockProblem, largest_samples, limit_threads
from deconv_cli.diagnostics.stored_samples import NEARLY_FULL
from deconv_cli.io.regions import cube_sides, spread_place
from deconv_cli.noise_model import NoiseModel
from deconv_cli.vocabulary import Size
from deconv_cli.workflows.lambda_series import LambdaView
from deconv_cli.workflows.measurement import Diagnosis
from deconv_cli.workflows.progress_listener import ProgressListener, StepOf
from deconv_cli.workflows.reconstruction import Reconstruction
from deconv_cli.workflows.trust import Doubt, DoubtReason

N_CANDIDATES, MOST_CANDIDATES = 9, 256
"""Number of places that are read, and the largest number if all are flat."""
MAX_SAMPLES = 2**18
"""Samples of a tile, at most."""
MAX_SAMPLES_OF_SIGNALS = 2**13
"""The same of a signal whose error is predicted, which draws hundreds of probes."""


@dataclass(frozen=True, eq=False)
class PreviewTile:
    """A tile: its place, and the contrast and extremes of its samples.

    `center` is the data sample in its middle; `frame_axis` the axis along which the tile was moved to the frame, if
    any.
    """

    batch: tuple[slice, ...]
    center: Size
    lowest: float = 0.0
    highest: float = 0.0
    contrast: float = 0.0
    frame_axis: int | None = None

    def at_frame(self, axis: int, sample: int) -> PreviewTile:
        """Move the tile along an axis to the first or the last sample."""
        return replace(self, center=(*self.center[:axis], sample, *self.center[axis + 1 :]), frame_axis=axis)

    def data(self, sides: Sequence[int], data_size: Size) -> tuple[Interval, ...]:
        """Lay out data of given sides around the center, moved inside the frame."""
        found = []
        for center, side, n in zip(self.center, sides, data_size, strict=True):
            start = max(0, min(center - side // 2, n - side))
            found.append((start, min(start + side, n)))
        return tuple(found)


def find_tiles(problem: BlockProblem, sides: Size) -> list[PreviewTile]:
    """Read tiles spread over the picture; return them by contrast, the largest first."""
    found = list[PreviewTile]()
    lengths = [*(problem.layout.sizes[axis] for axis in problem.layout.batch_axes), *problem.data_size]
    n_batch = len(problem.layout.batch_axes)
    for number in range(MOST_CANDIDATES):
        if number >= N_CANDIDATES and any(tile.contrast > 0 for tile in found):
            break
        places = spread_place(lengths, number)
        tile = PreviewTile(tuple(slice(at, at + 1) for at in places[:n_batch]), places[n_batch:])
        values = problem.read(tile.batch, tile.data(sides, problem.data_size)).double()
        lowest, highest = (float(end) for end in values.aminmax())
        found.append(replace(tile, lowest=lowest, highest=highest, contrast=contrast_of(values, problem.white)))
    return sorted(found, key=lambda tile: -tile.contrast)


def covering_tiles(problem: BlockProblem, tiles: Sequence[PreviewTile], sides: Size, n_most: int) -> list[PreviewTile]:
    """Return the first `n_most` tiles, or fewer if they cover a small picture; two if possible, to compare them."""
    n_covering = math.ceil(math.prod(problem.data_size) * problem.layout.n_batch / math.prod(sides))
    places = {(str(tile.batch), tile.data(sides, problem.data_size)): tile for tile in reversed(tiles)}
    distinct = [tile for tile in tiles if tile in places.values()]  # tiles of a small picture may cover the same data
    return distinct[: min(n_most, max(2, n_covering))]


def contrast_of(values: Tensor, white: float | None) -> float:
    """Return the variance of samples; those that are nearly saturated count as the mean.

    Cuts are compared at unsaturated samples only, and a tile on the edge of a white background has almost none.
    """
    counted = values if white is None else values[values < NEARLY_FULL * white]
    return float((counted - counted.mean()).square().sum()) / values.numel() if counted.numel() else 0.0


Found = TypeVar("Found")
TileTask = Callable[[PreviewTile, ProgressListener], Found]
"""Restores a tile and returns what it found."""


def map_tiles(
    task: TileTask[Found], tiles: Sequence[PreviewTile], what: str, progress: ProgressListener
) -> list[Found]:
    """Apply a function to tiles; the progress shows `what`, the number of the tile, and the iterations."""
    names = [f"{what}: piece {number} of {len(tiles)}" for number in range(1, len(tiles) + 1)]
    return [task(tile, StepOf(name, progress)) for tile, name in zip(tiles, names, strict=True)]


def tile_sides(problem: BlockProblem, max_memory: int, n_batch: int = 1, *, is_predicted: bool = False) -> Size:
    """Return the sides of the tiles on which settings are chosen, or errors predicted, within `max_memory` bytes."""
    largest = MAX_SAMPLES_OF_SIGNALS if is_predicted and len(problem.data_size) == 1 else MAX_SAMPLES
    # Choosing λ and predicting take more memory than restoring, and a solver for the whole of a tile more than for a
    # part.
    affordable = largest_samples(problem, max_memory, n_batch, is_tested=True) // 2
    return cube_sides(problem.data_size, max(min(largest, affordable), 1))


@dataclass(frozen=True, eq=False)
class Preview:
    """The piece of a picture that its page shows, restored as the blocks were.

    Attributes:
        number: of its image in the batch, from one.
        data: its place in the data.
        pixels: its place in the image.
        values: its data, shape `(1, C_out, *size)`.
        result: the estimate of the pixels under the data.
        diagnosis: what the residual and the kernel say.
        views: a detail under other λ or strengths.
    """

    number: int
    data: tuple[Interval, ...]
    pixels: tuple[Interval, ...]
    values: Tensor
    result: Reconstruction
    diagnosis: Diagnosis
    views: tuple[LambdaView, ...]


def restore_preview(problem: BlockProblem, max_memory: int, n_threads: int = 1) -> Preview:
    """Restore the piece with the most contrast."""
    limit_threads(n_threads)
    sides, pipeline = tile_sides(problem, max_memory, is_predicted=True), problem.pipeline()
    tile = find_tiles(problem, sides)[0]
    data = tile.data(sides, problem.data_size)
    values = problem.read(tile.batch, data)
    result = problem.restore(values, data, pipeline, is_tested=True)
    diagnosis = pipeline.diagnose(result, values)
    views = pipeline.vary_lambda(result, values, problem.source.dtype)
    ends = [(*interval, *cut.image_of(interval), cut.shift) for cut, interval in zip(problem.cuts, data, strict=True)]
    # The pixels of the image that lie under the data.
    pixels = tuple((max(start - shift, first), min(stop - shift, last)) for start, stop, first, last, shift in ends)
    image = problem.crop(result.image, data, pixels).cpu()
    result = replace(result, image=image, noise_found=diagnosis.tests.noise)
    number = 0
    for part, axis in zip(tile.batch, problem.layout.batch_axes, strict=True):
        number = number * problem.layout.sizes[axis] + part.start
    return Preview(number + 1, data, pixels, values.cpu(), result, diagnosis, views)


SMALL = 2**14
"""Samples of a tile, if nothing has to be chosen: it is restored only to see which solver runs."""
N_PIECES = 5
"""Number of tiles on which settings are chosen: those with the most contrast."""
OF_PIECES = (DoubtReason.RESIDUAL, DoubtReason.RESIDUAL_TESTS, DoubtReason.LAMBDA, DoubtReason.NOISE)
"""Reasons that hold for a picture if they hold for its tiles; solver and samples are checked in every block."""


@dataclass(frozen=True)
class FixedChoices:
    """What holds for all blocks alike.

    Attributes:
        lams: λ, or that of each channel; empty if the objective has none.
        weight: of a prior.
        iterations: of Richardson–Lucy.
        noise: a model, or one for each channel; empty if none was estimated.
        has_bounds: whether saturated samples are lower bounds.
        noise_levels: of each channel, for prior photo.
        finest: pixels that the finest measured detail spans, for prior photo.
    """

    lams: tuple[float, ...] = ()
    weight: float | None = None
    iterations: int | None = None
    noise: tuple[NoiseModel, ...] = ()
    has_bounds: bool = False
    noise_levels: tuple[float, ...] = ()
    finest: float | None = None

    def settle(self, problem: BlockProblem) -> BlockProblem:
        """Replace what the settings of a problem leave open."""
        resolution = problem.resolution
        settings, reasons = replace(resolution.settings, noise_levels=self.noise_levels), resolution.reasons
        if self.noise and settings.noise not in (None, "white"):  # for these saturated samples are measurements
            settings = replace(settings, noise=self.noise if len(self.noise) > 1 else self.noise[0])
        if self.weight is not None:
            settings = replace(settings, weight=self.weight, noise_sigma=None)
        if self.iterations is not None:
            settings = replace(settings, iterations=self.iterations, gain=None)
        if resolution.chooses_lambda:
            reasons = replace(reasons, lam=f"the median of {N_PIECES} pieces of the picture")
        if len(self.lams) == 1:
            settings = replace(settings, lam=self.lams[0])
        lams = self.lams if len(self.lams) > 1 else ()
        resolution = replace(resolution, settings=settings, reasons=reasons, chooses_lambda=False, lams=lams)
        return replace(problem, resolution=replace(resolution, has_bounds=self.has_bounds))


def fix_choices(
    problem: BlockProblem, tiles: Sequence[PreviewTile], sides: Size, progress: ProgressListener
) -> tuple[FixedChoices, tuple[Doubt, ...]]:
    """Restore some tiles as if each were a picture of its own, and take the median of what they choose.

    Each tile counts by its contrast, as in a criterion that sums over the whole picture: empty background does not
    influence how much detail is kept. Gives the choices, and the doubts of `doubt_pieces`.
    """
    is_open, size = _is_open(problem), problem.data_size
    pipeline = problem.pipeline()
    # If nothing is chosen and no residual is tested, one small tile shows which solver runs.
    shows_solver_only = not is_open and not problem.resolved.is_linear
    chosen = covering_tiles(problem, tiles, sides, 1 if shows_solver_only else N_PIECES)
    if shows_solver_only:
        sides = cube_sides(sides, SMALL)

    def restore(tile: PreviewTile, progress: ProgressListener) -> Reconstruction:
        data = tile.data(sides, size)
        return problem.restore(problem.read(tile.batch, data), data, pipeline, progress, is_tested=True)

    found = map_tiles(restore, chosen, "what holds for all blocks", progress)
    doubts, has_bounds = doubt_pieces(found), any(result.has_bounds for result in found)
    if not is_open:
        found = found[:1]  # one shows the kind of noise
    shares = [max(tile.contrast, 1e-300) for tile in chosen[: len(found)]]
    return replace(_pool(found, shares), has_bounds=has_bounds), doubts


def _is_open(problem: BlockProblem) -> bool:
    """Return whether λ, a weight or a number of iterations has to be chosen."""
    settings = problem.resolved
    if settings.has_lambda:
        return problem.resolution.chooses_lambda
    return settings.iterations is None if settings.objective == "richardson-lucy" else settings.weight in (None, "auto")


def _pool(found: Sequence[Reconstruction], shares: Sequence[float]) -> FixedChoices:
    """Return the weighted median of the choices of the tiles."""
    lams = [[part.settings.lam for part in (result.channels or (result,))] for result in found]
    weights = [result.solution.weight for result in found if result.solution.weight is not None]
    steps = [max(result.solution.n_steps, 1) for result in found if result.solution.n_steps is not None]
    noise = []
    for models in zip(*(result.noise for result in found), strict=True):
        sigma = weighted_median([model.sigma or 0.0 for model in models], shares)
        noise.append(min(models, key=lambda model: abs((model.sigma or 0.0) - sigma)))
    levels = zip(*(result.solution.noise_levels for result in found), strict=True)
    finest = [result.finest for result in found if result.finest is not None]
    has_lambda = found[0].settings.has_lambda
    return FixedChoices(
        lams=tuple(weighted_median(of_one, shares) for of_one in zip(*lams, strict=True)) if has_lambda else (),
        weight=weighted_median(weights, shares) if len(weights) == len(found) else None,
        iterations=int(weighted_median(steps, shares)) if len(steps) == len(found) else None,
        noise=tuple(noise),
        noise_levels=tuple(weighted_median(of_one, shares) for of_one in levels),
        finest=median(finest) if finest else None,
    )


def weighted_median(values: Sequence[float], shares: Sequence[float]) -> float:
    """Return the value up to which half of all shares lie."""
    half, total = math.fsum(shares) / 2, 0.0
    pairs = sorted(zip(values, shares, strict=True))
    for value, share in pairs:
        total += share
        if total >= half:
            return value
    return pairs[-1][0]


def doubt_pieces(found: Sequence[Reconstruction]) -> tuple[Doubt, ...]:
    """Doubt a picture if at least half of its tiles have no λ, show mostly noise, or contradict the kernel.

    Gives the sentence of the first tile that is doubted, and how many are; empty if most are not.
    """
    of_pieces = [[doubt for doubt in piece.doubts if doubt.reason in OF_PIECES] for piece in found]
    doubted = [doubts for doubts in of_pieces if doubts]
    if not doubted or 2 * len(doubted) < len(found):
        return ()
    n = len(found)
    where = "the piece of the picture that was" if n == 1 else f"{len(doubted)} of {n} pieces of the picture that were"
    first = doubted[0][0]
    return (Doubt(first.reason, f"in {where} tested: {first.sentence}"),)
