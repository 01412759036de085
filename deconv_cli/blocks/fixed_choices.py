"""What is chosen once for a whole picture, from its preview tiles: otherwise every block would choose for itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from deconv_cli.blocks.block_problem import BlockProblem
from deconv_cli.blocks.preview_tiles import PreviewTile, covering_tiles, map_tiles, workers_for
from deconv_cli.io.regions import cube_sides
from deconv_cli.noise_model import NoiseModel
from deconv_cli.vocabulary import Size
from deconv_cli.workflows.progress_listener import ProgressListener
from deconv_cli.workflows.reconstruction import Reconstruction
from deconv_cli.workflows.trust import DoubtReason

SMALL = 2**14
"""Samples of the one tile that is restored to see which solver runs, if nothing has to be chosen."""
N_PIECES = 5
"""Tiles that choose: those with the most contrast."""
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
) -> tuple[FixedChoices, tuple[str, ...]]:
    """Restore some tiles as if each were a picture of its own, and take the median of what they choose.

    Each tile counts by its contrast, as in a criterion that sums over the whole picture: empty background has no say in
    how much detail is kept. Gives the choices, and why the tiles are doubted, as `doubt_pieces` says it.
    """
    is_open, size = _is_open(problem), problem.data_size
    pipeline = problem.pipeline()
    # If nothing is chosen and no residual is tested, one small tile shows which solver runs.
    is_looked_at = is_open or problem.resolved.is_linear
    chosen = covering_tiles(problem, tiles, sides, N_PIECES if is_looked_at else 1)
    if not is_looked_at:
        sides = cube_sides(sides, SMALL)

    def restore(tile: PreviewTile, progress: ProgressListener) -> Reconstruction:
        data = tile.data(sides, size)
        return problem.restore(problem.read(tile.batch, data), data, pipeline, progress, is_tested=True)

    n_workers = workers_for(problem, sides, is_tested=True)
    found = map_tiles(restore, chosen, "what holds for all blocks", progress, n_workers)
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


def doubt_pieces(found: Sequence[Reconstruction]) -> tuple[str, ...]:
    """Doubt a picture if at least half of its tiles have no λ, show mostly noise, or contradict the kernel.

    Gives the sentence of the first tile that is doubted, and how many are; empty if most are not.
    """
    of_pieces = [[doubt.sentence for doubt in piece.doubts if doubt.reason in OF_PIECES] for piece in found]
    doubted = [sentences for sentences in of_pieces if sentences]
    if not doubted or 2 * len(doubted) < len(found):
        return ()
    n = len(found)
    where = "the piece of the picture that was" if n == 1 else f"{len(doubted)} of {n} pieces of the picture that were"
    return (f"in {where} tested: {doubted[0][0]}",)
