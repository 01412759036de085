"""Whether a convolution acts on light or on stored samples, and why."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from deconv_cli.diagnostics.lambda_rules import choose_by_rule
from deconv_cli.diagnostics.periodic_extension import PeriodicExtension
from deconv_cli.errors import UsageError, check_type
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators.axes import crop
from deconv_cli.tone_curve import ToneCurve
from deconv_cli.vocabulary import ROUNDING_NOISE, ArithmeticDType, LambdaRule, Light
from deconv_cli.workflows.arithmetic import pick_dtype

RECORDED = "recorded in the file by deconv forward"
_CLEARLY = 2.5
"""Factor between the whiteness of two residuals at which one light is called better. The wrong light was whiter by at
most 1.6 on 6 photographs, under three kernels, and on 16 others, under two kernels and two sizes of noise, as JPEG."""
_TILE, _LARGEST_KERNEL = 256, 64
_FLAT, _BYTE = 4.0, 255.0
"""Times the noise of rounding to bytes: a tile without more contrast says nothing about its light."""


@dataclass(frozen=True, eq=False)
class ChosenLight:
    """What a convolution acts on.

    Attributes:
        light: light, or the samples as they are stored.
        reason: the reason, a sentence without its full stop.
        curve: the tone curve to undo; `None` for stored samples.
        is_assumed: whether samples that may have a tone curve are taken as linear in light.
    """

    light: Light
    reason: str
    curve: ToneCurve | None
    is_assumed: bool = False

    def to_light(self, stored: Tensor, dtype: ArithmeticDType | str | None = None) -> Tensor:
        """Undo the curve, if there is one, in the precision of the arithmetic; shape `(*, C, H, W)`."""
        if self.curve is None:
            return stored
        return self.curve.to_light(stored.to(pick_dtype(dtype, stored, stored.device)))

    def to_stored(self, light: Tensor) -> Tensor:
        """Apply the curve again, if there is one; shape `(*, C, H, W)`."""
        return light if self.curve is None else self.curve.to_stored(light)


def caution_light(stored: Tensor, kernel: Kernel, curve: ToneCurve, *, is_light: bool) -> str | None:
    """Return a sentence if the residual of a tile of stored samples `(*batch, C, H, W)` is whiter in the other light.

    Frequencies that the kernel removes hold only noise, unless a tone curve came after the blur.
    """
    size = stored.shape[-2:]
    if (
        not kernel.shared
        or kernel.field is not None
        or kernel.n_axes != 2
        or max(kernel.size) > min(_LARGEST_KERNEL, *size)
    ):
        return None
    window = tuple(min(n, _TILE) for n in size)
    start = tuple((n - kept) // 2 for n, kept in zip(size, window, strict=True))
    images = crop(stored.detach().reshape(-1, *stored.shape[-3:])[0], start, window).float()
    if float(images.std()) < _FLAT * ROUNDING_NOISE * curve.white / _BYTE:
        return None
    middle, found = images.shape[0] // 2, {}
    kernel = replace(kernel, taps=kernel.taps.detach().to(images))
    extension = PeriodicExtension(kernel, window, boundary="unknown", penalty="gradient")
    for name, tile in ((Light.STORED, images), (Light.LINEAR, curve.to_light(images))):
        data = tile[middle : middle + 1]
        lam = choose_by_rule(LambdaRule.GCV, extension.initial(data), 0.0).chosen
        found[name] = min(choose_by_rule(LambdaRule.WHITENESS, extension.continued(data, lam), 0.0).values)
    light, other = (Light.LINEAR, Light.STORED) if is_light else (Light.STORED, Light.LINEAR)
    if not found[light] > _CLEARLY * found[other] > 0:  # NaN where the middle is empty
        return None
    places = {Light.STORED: "on the samples as they are stored", Light.LINEAR: "in linear light"}
    whiter = f"if the kernel acts {places[other]}, the residual is {found[light] / found[other]:.2g} times whiter"
    return f'{whiter}: the blur probably acted there; try light="{other}"'


def choose_light(wanted: str, curve: ToneCurve | None, recorded: Light | None = None) -> ChosenLight:
    """Decide whether a convolution acts on light or on stored samples, by the setting, the record, then the curve."""
    if curve is not None:
        check_type(curve, ToneCurve, "tone_curve")
    if wanted != "auto":
        light, why = Light(wanted), "given by the user"
    elif recorded is not None:
        light, why = recorded, RECORDED
    elif curve is not None and curve.is_default:
        light, why = Light.LINEAR, "optical blur acts on light"
    elif curve is None:
        light, why = Light.STORED, "no tone curve is known, so they count as light"
    else:
        light, why = Light.STORED, "without an ICC profile they count as light"
    if light is Light.STORED:
        is_assumed = wanted == "auto" and recorded is None and curve is not None
        return ChosenLight(light, f"in the samples as they are stored: {why}", None, is_assumed)
    if curve is None:
        raise UsageError(
            "light=linear needs the tone curve of the samples, which is not known: they are not a picture of 8 or 16 "
            "bits in gray or RGB, or lack the ICC profile that deconv forward used; use light=stored."
        )
    origin = f" ({curve.origin})" if curve.origin else ""
    return ChosenLight(light, f"in linear light, undone from {curve.name}{origin}: {why}", curve)
