"""What a residual points to: too smooth, too rough, another kernel, another boundary, or nothing amiss."""

from __future__ import annotations

from enum import StrEnum


class ResidualFinding(StrEnum):
    """What a residual points to; `sentence` says it."""

    FINE = "fine"
    OVER_SMOOTHED = "over-smoothed"
    NOISE_FITTED = "noise fitted"
    WRONG_KERNEL = "wrong kernel"
    WRONG_BOUNDARY = "wrong boundary"
    INCONCLUSIVE = "inconclusive"

    @property
    def sentence(self) -> str:
        """The finding as a sentence without its full stop, with what to do."""
        return _SENTENCES[self]

    @property
    def is_warning(self) -> bool:
        """Whether something is amiss."""
        return self not in (ResidualFinding.FINE, ResidualFinding.INCONCLUSIVE)

    @property
    def is_rejection(self) -> bool:
        """Whether the model itself is contradicted, so that no λ gives a result to trust."""
        return self in (ResidualFinding.WRONG_KERNEL, ResidualFinding.WRONG_BOUNDARY)


_SENTENCES = {
    ResidualFinding.FINE: "the residual is no larger than the noise: nothing contradicts kernel, boundary or λ",
    ResidualFinding.OVER_SMOOTHED: (
        "the residual still holds detail of the picture that the kernel lets through: the estimate is over-smoothed, "
        "and a smaller λ would recover more"
    ),
    ResidualFinding.NOISE_FITTED: (
        "the residual is smaller than the noise: the estimate has fitted noise and shows it amplified; use a larger λ. "
        "If λ was chosen from the data, doubt the kernel too: one that is too wide makes them ask for a small λ"
    ),
    ResidualFinding.WRONG_KERNEL: (
        "the data hold what this kernel all but removes, so no plausible picture explains them: the kernel is "
        "probably wrong"
    ),
    ResidualFinding.WRONG_BOUNDARY: (
        "the residual is much larger along the edges than inside: the boundary is probably not what was assumed; "
        'try boundary="unknown"'
    ),
    ResidualFinding.INCONCLUSIVE: (
        "the residual neither confirms nor contradicts kernel and λ: the estimate has taken up most of the noise, or "
        "the noise cannot be separated from the picture itself"
    ),
}
