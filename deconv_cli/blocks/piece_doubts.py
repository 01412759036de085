"""Whether a picture that is restored in blocks is doubted for what its pieces show."""

from __future__ import annotations

from collections.abc import Sequence

from deconv_cli.workflows.reconstruction import Reconstruction
from deconv_cli.workflows.trust import DoubtReason

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
