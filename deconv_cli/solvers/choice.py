"""Which solver runs: one public function, whose reason goes into the report."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from deconv_cli.errors import UsageError
from deconv_cli.operators.boundaries.rule import BoundaryRule
from deconv_cli.operators.geometry import Geometry
from deconv_cli.solvers import direct, strip
from deconv_cli.solvers.memory import free_memory
from deconv_cli.vocabulary import format_memory

# The direct method may take this part of the memory that is free.
MEMORY_SHARE = 0.5
# A factorization was measured to run this many times more operations a second than an iteration does.
FACTORIZATION_SPEED = 4.0
STRIP_REASON = "all but a strip along the border is diagonal in frequency, and an iteration settles the strip"


@dataclass(frozen=True)
class Choice:
    """A method and the sentence that says why it was taken."""

    method: str
    reason: str


def choose_method(
    geometry: Geometry,
    boundary: BoundaryRule,
    *,
    lam: float,
    penalty: str,
    n_outputs: int,
    n_inputs: int,
    device: torch.device,
    asked: str = "auto",
    max_memory: int | None = None,
) -> Choice:
    """Decide how a convolution is undone.

    Args:
        geometry: the sizes.
        boundary: what lies outside the image.
        lam: λ.
        penalty: which L.
        n_outputs: output channels.
        n_inputs: input channels.
        device: where the arithmetic runs; the direct method needs double precision there.
        asked: a method chosen by hand.
        max_memory: bytes that the direct method may take; by default a part of what is free.

    Raises:
        UsageError: the method asked for cannot solve this problem.
    """
    is_diagonal = boundary.is_periodic and geometry.output_size == geometry.image_size
    has_strip = strip.covers(geometry, boundary, lam=lam, penalty=penalty, n_outputs=n_outputs, n_inputs=n_inputs)
    has_direct = device.type != "mps" and direct.covers(
        geometry, boundary, lam=lam, penalty=penalty, n_outputs=n_outputs, n_inputs=n_inputs
    )
    _check_asked(asked, is_diagonal=is_diagonal, has_strip=has_strip, has_direct=has_direct)
    if asked != "auto":
        return Choice(asked, "asked for")
    if is_diagonal:
        return Choice("fft", "a circular convolution of unchanged size is diagonal in frequency")
    if not (has_strip or has_direct):
        return Choice("iterative", f"boundary {boundary.name} with λ {lam:g} and penalty {penalty} has no shorter way")
    if not has_direct:
        return Choice("strip", STRIP_REASON)
    cost = direct.estimate_cost(geometry, boundary, lam=lam, n_outputs=n_outputs, n_inputs=n_inputs)
    if has_strip and cost.n_operations > FACTORIZATION_SPEED * _strip_operations(geometry, lam, n_outputs, n_inputs):
        return Choice("strip", STRIP_REASON)
    budget = MEMORY_SHARE * free_memory(device) if max_memory is None else max_memory
    if cost.n_bytes <= budget:
        return Choice("direct", _direct_reason(cost))
    need = f"a direct solution would need {format_memory(cost.n_bytes)}, and {format_memory(budget)} may be used"
    return Choice("strip" if has_strip else "iterative", need)


def _direct_reason(cost: direct.Cost) -> str:
    if not cost.n_eliminated:
        return f"the border's system of {cost.n_unknowns} unknowns is factored once, exactly"
    return (
        f"the border's system of {cost.n_unknowns} unknowns is solved exactly: {cost.n_eliminated} of them are "
        "eliminated by FFTs where the kernel allows it, and what is left is factored once"
    )


def _check_asked(asked: str, *, is_diagonal: bool, has_strip: bool, has_direct: bool) -> None:
    """Refuse a method that was asked for but cannot solve the problem."""
    if asked == "richardson-lucy":
        raise UsageError(
            "method richardson-lucy is no linear inverse, and cannot be built ahead, constrained or kept; "
            "use it with deconv invert and its kernel alone, or use method auto."
        )
    if asked == "fft" and not is_diagonal:
        raise UsageError("method fft inverts circular convolutions of unchanged size only; use method auto.")
    if asked == "strip" and not has_strip:
        raise UsageError(
            "method strip does not cover this problem (λ = 0 with an output of unchanged size, a periodic penalty, or "
            "constants that nothing determines); use method auto."
        )
    if asked == "direct" and not has_direct:
        raise UsageError(
            "method direct needs λ > 0 here (with penalty identity, if the kernel has fewer outputs than inputs); "
            "use another λ, or method auto."
        )


def _strip_operations(geometry: Geometry, lam: float, n_outputs: int, n_inputs: int) -> float:
    """Estimate the operations of the iteration on the strip: each applies the border's system twice."""
    n_pixels = math.prod(geometry.extended_size)
    transforms = 4 * (n_outputs + n_inputs) * 2.5 * n_pixels * math.log2(max(n_pixels, 2))
    products = 32.0 * n_pixels * (n_outputs + n_inputs) ** 2
    # Measured: 20 to 40 iterations at λ = 1e-3, 150 to 250 at 1e-6.
    digits = 6.0 if lam == 0 else max(0.0, -math.log10(lam))
    return (transforms + products) * (10 + 5 * digits**2)
