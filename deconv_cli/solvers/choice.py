"""Which solver runs: one public function, whose reason goes into the report."""

from __future__ import annotations

from dataclasses import dataclass

from deconv_cli.errors import UsageError
from deconv_cli.operators.geometry import Geometry
from deconv_cli.vocabulary import Boundary, Method


@dataclass(frozen=True)
class Choice:
    """A method and the sentence that says why it was taken."""

    method: Method
    reason: str


def choose_method(geometry: Geometry, boundary: Boundary, *, asked: Method = Method.AUTO) -> Choice:
    """Decide how a convolution is undone.

    Args:
        geometry: the sizes.
        boundary: what lies outside the image.
        asked: a method chosen by hand.

    Raises:
        UsageError: the method asked for cannot solve this problem.
    """
    is_diagonal = boundary is Boundary.CIRCULAR and geometry.output_size == geometry.image_size
    if asked is Method.FFT and not is_diagonal:
        raise UsageError(
            "method fft inverts a circular convolution of unchanged size only, but the boundary is "
            f"{boundary} and an image of {geometry.image_size} gives {geometry.output_size}; use method iterative."
        )
    if asked is not Method.AUTO:
        return Choice(asked, "asked for")
    if is_diagonal:
        return Choice(Method.FFT, "a circular convolution of unchanged size is diagonal in frequency")
    return Choice(Method.ITERATIVE, f"a convolution with a {boundary} boundary is not diagonal in frequency")
