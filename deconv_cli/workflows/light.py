"""In what a convolution acts: whether the tone curve of the samples is undone first, and why."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deconv_cli.argument_types import check_type
from deconv_cli.errors import UsageError
from deconv_cli.tone_curve import ToneCurve
from deconv_cli.vocabulary import ArithmeticDType, Light
from deconv_cli.workflows.arithmetic import pick_dtype

RECORDED = "recorded in the file by deconv forward"
_GIVEN = "given by the user"


@dataclass(frozen=True, eq=False)
class ChosenLight:
    """In what a convolution acts.

    Attributes:
        light: in light, or in the samples as they are stored.
        reason: why, a sentence without its full stop.
        curve: what is undone; `None` where nothing is.
    """

    light: Light
    reason: str
    curve: ToneCurve | None

    def to_light(self, stored: Tensor, dtype: ArithmeticDType | str | None = None) -> Tensor:
        """Undo the curve, if there is one, in the precision of the arithmetic; shape `(*, C, H, W)`."""
        if self.curve is None:
            return stored
        return self.curve.to_light(stored.to(pick_dtype(dtype, stored, stored.device)))

    def to_stored(self, light: Tensor) -> Tensor:
        """Do it again; shape `(*, C, H, W)`."""
        return light if self.curve is None else self.curve.to_stored(light)


def choose_light(wanted: str, curve: ToneCurve | None, recorded: Light | None = None) -> ChosenLight:
    """Decide in what a convolution acts.

    Args:
        wanted: `linear`, `stored` or `auto`.
        curve: how the samples encode light, where that is known.
        recorded: what the input's file says of the convolution that made it.

    Raises:
        UsageError: light is to be linear, and no curve is known.
    """
    if curve is not None:
        check_type(curve, ToneCurve, "tone_curve")
    if wanted != "auto":
        light, why = Light(wanted), _GIVEN
    elif recorded is not None:
        light, why = recorded, RECORDED
    elif curve is not None and curve.is_default:
        light, why = Light.LINEAR, "optical blur acts on light"
    elif curve is None:
        light, why = Light.STORED, "no tone curve is known of them, so they are taken to be linear in light"
    else:
        light, why = Light.STORED, "a file of such samples without an ICC profile is taken to be linear in light"
    if light is Light.STORED:
        return ChosenLight(light, f"in the samples as they are stored: {why}", None)
    if curve is None:
        raise UsageError(
            "light=linear undoes the tone curve of the samples, but none is known: they are no picture of 8 or 16 bits "
            "in gray or RGB, or lack the ICC profile that deconv forward went by; use light=stored, or from Python "
            "give tone_curve."
        )
    origin = f" ({curve.origin})" if curve.origin else ""
    return ChosenLight(light, f"in linear light, undone from {curve.name}{origin}: {why}", curve)
