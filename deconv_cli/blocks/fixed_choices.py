"""What is chosen once for a whole picture, from pieces that are spread over it: else every block would choose anew."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from deconv_cli.blocks.block_problem import BlockProblem
from deconv_cli.blocks.sample_windows import SampleWindow, covering_windows, map_pieces, workers_for
from deconv_cli.io.regions import cube_sides
from deconv_cli.noise_model import NoiseModel
from deconv_cli.vocabulary import Size
from deconv_cli.workflows.progress_listener import ProgressListener
from deconv_cli.workflows.reconstruction import Reconstruction
from deconv_cli.workflows.resolution import Resolution
from deconv_cli.workflows.trust import DoubtReason

SMALL = 2**14
"""Samples of a piece from which nothing is chosen."""
N_PIECES = 5
"""Pieces that are restored to choose from: those with the most contrast of the places that are looked at."""


@dataclass(frozen=True)
class FixedChoices:
    """What holds for all blocks alike.

    Attributes:
        lams: λ, or that of each channel; empty where the objective has none.
        weight: of a prior; `None` where there is none.
        iterations: of Richardson–Lucy and the total variation; `None` for other objectives.
        noise: a model, or one for each channel; empty where none was looked for.
        rho: of the steps of the total variation; `None` for other objectives.
        noise_levels: of each channel, for prior photo; else empty.
        has_bounds: whether full samples are no more than bounds.
    """

    lams: tuple[float, ...] = ()
    weight: float | None = None
    iterations: int | None = None
    noise: tuple[NoiseModel, ...] = ()
    rho: float | None = None
    has_bounds: bool = False
    noise_levels: tuple[float, ...] = ()

    def as_record(self) -> dict[str, Any]:
        """Give the choices as JSON can hold them."""
        return {
            "lambda": list(self.lams),
            "weight": self.weight,
            "iterations": self.iterations,
            "noise": [{"sigma": model.sigma, "spectrum": list(model.spectrum)} for model in self.noise],
            "rho": self.rho,
            "has_bounds": self.has_bounds,
            "noise_levels": list(self.noise_levels),
        }

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> FixedChoices:
        """Read what `as_record` gave."""
        noise = tuple(NoiseModel.of_record(found, "auto") for found in record["noise"])
        others = (record[name] for name in ("rho", "has_bounds"))
        found = cls(tuple(record["lambda"]), record["weight"], record["iterations"], noise, *others)
        return replace(found, noise_levels=tuple(record["noise_levels"]))

    def settle(self, problem: BlockProblem) -> BlockProblem:
        """Settle what a problem left open."""
        return replace(problem, resolution=self._apply(problem.resolution))

    def _apply(self, resolution: Resolution) -> Resolution:
        settings, reasons = replace(resolution.settings, noise_levels=self.noise_levels), resolution.reasons
        if self.rho is not None:
            settings = replace(settings, rho=self.rho)
        if self.noise and settings.noise not in (None, "white"):  # full samples are measurements for those words alone
            settings = replace(settings, noise=self.noise if len(self.noise) > 1 else self.noise[0])
        if self.weight is not None:
            settings = replace(settings, weight=self.weight, noise_sigma=None)
        if self.iterations is not None:
            settings = replace(settings, iterations=self.iterations, gain=None)
        if resolution.chooses_lambda:
            reasons = replace(reasons, lam=f"the median of what {N_PIECES} pieces of the picture ask for")
        if len(self.lams) == 1:
            settings = replace(settings, lam=self.lams[0])
        lams = self.lams if len(self.lams) > 1 else ()
        resolution = replace(resolution, settings=settings, reasons=reasons)
        return replace(resolution, chooses_lambda=False, lams=lams, has_bounds=self.has_bounds)


def fix_choices(
    problem: BlockProblem, windows: Sequence[SampleWindow], sides: Size, progress: ProgressListener
) -> tuple[FixedChoices, tuple[str, ...]]:
    """Restore some pieces as if each were a picture of its own, and take the median of what they choose.

    Each piece counts by its contrast, as it would in a criterion that sums over the whole picture; empty background
    has no say in how much detail is kept.

    Args:
        problem: what is restored.
        windows: places, those with the most contrast first.
        sides: of the pieces, along each axis of space.
        progress: is notified which piece is restored.

    Returns:
        The choices, and why the pieces are doubted, as `doubt_pieces` says it.
    """
    size, is_open, problem = problem.data_size, _is_open(problem.resolution), _with_one_step(problem)
    is_linear, pipeline = problem.resolution.settings.is_linear, problem.pipeline()
    # Where nothing is chosen and no residual is tested, a single small piece tells which solver there is.
    is_looked_at = is_open or is_linear
    chosen = covering_windows(problem, windows, sides, N_PIECES if is_looked_at else 1)
    if not is_looked_at:
        sides = cube_sides(sides, SMALL)

    def restore(window: SampleWindow, progress: ProgressListener) -> Reconstruction:
        data = window.data(sides, size)
        return problem.restore(problem.read(window.batch, data), data, pipeline, progress, is_tested=True)

    n_workers = workers_for(problem, sides, is_tested=True)
    found = map_pieces(restore, chosen, "what holds for all blocks", progress, n_workers)
    doubts, has_bounds = doubt_pieces(found), any(result.has_bounds for result in found)
    if not is_open:
        found = found[:1]  # where all else is given, one tells the kind of noise
    shares = [max(window.contrast, 1e-300) for window in chosen[: len(found)]]
    choices = FixedChoices(
        lams=_lams(found, shares),
        weight=_weight(found, shares),
        iterations=_iterations(found, shares),
        noise=_noise(found, shares),
        rho=found[0].solution.rho,
        has_bounds=has_bounds,
        noise_levels=_noise_levels(found, shares),
    )
    return choices, doubts


def _with_one_step(problem: BlockProblem) -> BlockProblem:
    """Let the total variation end at once: its weight is known by then, and `choose_steps` counts its steps."""
    settings = problem.resolution.settings
    if settings.objective != "tv":
        return problem
    return replace(problem, resolution=replace(problem.resolution, settings=replace(settings, iterations=1)))


def _is_open(resolution: Resolution) -> bool:
    """Tell whether λ, a weight or a number of iterations is to be chosen."""
    settings = resolution.settings
    if settings.has_lambda:
        return resolution.chooses_lambda
    return settings.iterations is None if settings.method == "richardson-lucy" else settings.weight in (None, "auto")


def _lams(found: Sequence[Reconstruction], shares: Sequence[float]) -> tuple[float, ...]:
    if not found[0].settings.has_lambda:
        return ()
    by_channel = zip(*([part.settings.lam for part in (result.channels or (result,))] for result in found), strict=True)
    return tuple(weighted_median(lams, shares) for lams in by_channel)


def _weight(found: Sequence[Reconstruction], shares: Sequence[float]) -> float | None:
    weights = [result.solution.weight for result in found]
    known = [weight for weight in weights if weight is not None]
    return weighted_median(known, shares) if len(known) == len(weights) else None


def _iterations(found: Sequence[Reconstruction], shares: Sequence[float]) -> int | None:
    steps = [result.solution.n_steps for result in found]
    known = [max(n, 1) for n in steps if n is not None]
    return int(weighted_median(known, shares)) if len(known) == len(steps) else None


def _noise(found: Sequence[Reconstruction], shares: Sequence[float]) -> tuple[NoiseModel, ...]:
    by_channel = zip(*(result.noise for result in found), strict=True)
    chosen = []
    for models in by_channel:
        sigma = weighted_median([model.sigma or 0.0 for model in models], shares)
        chosen.append(min(models, key=lambda model: abs((model.sigma or 0.0) - sigma)))
    return tuple(chosen)


def _noise_levels(found: Sequence[Reconstruction], shares: Sequence[float]) -> tuple[float, ...]:
    by_channel = zip(*(result.solution.noise_levels for result in found), strict=True)
    return tuple(weighted_median(levels, shares) for levels in by_channel)


def weighted_median(values: Sequence[float], shares: Sequence[float]) -> float:
    """Give the value up to which half of all shares lie."""
    half, total = math.fsum(shares) / 2, 0.0
    pairs = sorted(zip(values, shares, strict=True))
    for value, share in pairs:
        total += share
        if total >= half:
            return value
    return pairs[-1][0]


OF_PIECES = (DoubtReason.RESIDUAL, DoubtReason.RESIDUAL_TESTS, DoubtReason.LAMBDA, DoubtReason.NOISE)
"""Reasons that hold for a picture where they hold for its pieces; solvers and samples are looked at in every block."""


def doubt_pieces(found: Sequence[Reconstruction]) -> tuple[str, ...]:
    """Doubt a picture where at least half of its pieces have no λ, show mostly noise, or contradict the kernel.

    Args:
        found: pieces that were restored, those with the most contrast first.

    Returns:
        The sentence of the first piece that is doubted, with how many are; empty where most are not.
    """
    of_pieces = [[doubt.sentence for doubt in piece.doubts if doubt.reason in OF_PIECES] for piece in found]
    doubted = [sentences for sentences in of_pieces if sentences]
    if not doubted or 2 * len(doubted) < len(found):
        return ()
    n = len(found)
    where = "the piece of the picture that was" if n == 1 else f"{len(doubted)} of {n} pieces of the picture that were"
    return (f"in {where} tested: {doubted[0][0]}",)
