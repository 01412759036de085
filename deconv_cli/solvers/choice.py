"""Which solver runs: one public function, whose reason goes into the report."""

from __future__ import annotations

from dataclasses import dataclass

from deconv_cli.errors import UsageError
from deconv_cli.operators.geometry import Geometry
from deconv_cli.solvers import strip
from deconv_cli.vocabulary import Boundary, Method, Penalty


@dataclass(frozen=True)
class Choice:
    """A method and the sentence that says why it was taken."""

    method: Method
    reason: str


def choose_method(
    geometry: Geometry,
    boundary: Boundary,
    *,
    lam: float,
    penalty: Penalty,
    n_outputs: int,
    n_inputs: int,
    asked: Method = Method.AUTO,
) -> Choice:
    """Decide how a convolution is undone.

    Args:
        geometry: the sizes.
        boundary: what lies outside the image.
        lam: λ.
        penalty: which L.
        n_outputs: output channels.
        n_inputs: input channels.
        asked: a method chosen by hand.

    Raises:
        UsageError: the method asked for cannot solve this problem.
    """
    is_diagonal = boundary is Boundary.CIRCULAR and geometry.output_size == geometry.image_size
    has_strip = strip.covers(boundary, lam, penalty, n_outputs, n_inputs)
    if asked is Method.FFT and not is_diagonal:
        raise UsageError(
            "method fft inverts a circular convolution of unchanged size only, but the boundary is "
            f"{boundary} and an image of {geometry.image_size} gives {geometry.output_size}; use method auto."
        )
    if asked is Method.STRIP and not has_strip:
        raise UsageError(
            "method strip needs boundary unknown, λ > 0 and penalty identity or gradient, but has boundary "
            f"{boundary}, λ {lam:g} and penalty {penalty}; use method auto."
        )
    if asked is not Method.AUTO:
        return Choice(asked, "asked for")
    if is_diagonal:
        return Choice(Method.FFT, "a circular convolution of unchanged size is diagonal in frequency")
    if has_strip:
        return Choice(Method.STRIP, "all but the unobserved strip around the image is diagonal in frequency")
    return Choice(Method.ITERATIVE, f"boundary {boundary} with λ {lam:g} and penalty {penalty} has no shorter way")
