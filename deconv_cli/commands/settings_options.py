"""The settings of a reconstruction at the prompt: the wording of each option, and how its text is read.

This is the second of the two places where an option is added; the first is its field in `settings.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer

from deconv_cli.layer_options import PLAIN, LayerOptions
from deconv_cli.parts import BOUNDARIES, PENALTIES, method_names, prior_names
from deconv_cli.settings import ReconstructionSettings
from deconv_cli.vocabulary import (
    ArithmeticDType,
    InputKind,
    LambdaRule,
    Light,
    as_typed,
    option_name,
    parse_memory,
    parse_numbers,
    parse_padding,
)

SettingValues = dict[str, Any]
"""Settings that were typed, by their names."""

CONVOLUTION = "The convolution"
LAYER = "A layer of a network"
PENALTY = "λ and penalty"
PRIOR = "Other objectives"
SOLVER = "Computation"
ERROR = "The error to be expected"


@dataclass(frozen=True)
class SettingOption:
    """An option that sets a setting.

    Attributes:
        help: its help text.
        kind: its type at the prompt.
        names: lists the words that complete it.
        least: the least number.
        metavar: its value in the help.
        read: converts a typed text.
        name: the setting.
        panel: its panel of the help.
    """

    help: str
    kind: Any = str
    names: Callable[[], list[str]] | None = None
    least: float | None = None
    metavar: str | None = None
    read: Callable[[str], object] = parse_numbers
    name: str = ""
    panel: str = ""

    def annotation_with(self, text: str | None) -> Any:  # noqa: ANN401
        """Return the type with Typer's description of the option, or with another help text."""
        option = typer.Option(
            option_name(self.name),
            metavar=self.metavar or ("NAME" if self.names else None),
            help=text or self.help,
            show_default=False,
            rich_help_panel=self.panel,
            autocompletion=self.names,
            min=self.least,
        )
        return Annotated[self.kind | None, option]


def _panel(panel: str, **options: SettingOption) -> dict[str, SettingOption]:
    """Name the options of a panel of the help."""
    return {name: replace(option, name=name, panel=panel) for name, option in options.items()}


LAYER_SETTINGS = ("stride", "dilation", "groups", "transposed", "output_padding")
"""The settings that make a convolution another layer than a plain one."""

SETTINGS_OPTIONS = {
    **_panel(
        CONVOLUTION,
        boundary=SettingOption(
            f"What lay outside the image: {', '.join(BOUNDARIES)}. Default: auto, what deconv forward recorded in the "
            "file; else unknown for pictures and zero for tensors.",
            names=lambda: ["auto", *BOUNDARIES],
        ),
        light=SettingOption(
            "What the blur acts on: linear converts samples to light and back by their ICC profile, gamma or sRGB; "
            "stored uses the samples as they are. Default: auto, what deconv forward recorded in the file; else "
            "linear for pictures, except TIFF without a profile, and stored for tensors.",
            names=lambda: ["auto", *Light],
            metavar="auto|linear|stored",
        ),
        padding=SettingOption(
            "Reach of the kernel outside the image. Default: what deconv forward recorded, else same.",
            metavar="same|valid|full|N|NH,NW",
            read=parse_padding,
        ),
        dimensions=SettingOption(
            "Number of axes of space: 1 for signals, 2 for pictures, 3 for stacks. Default: from the file and the "
            "kernel. A kernel with fewer axes works on each plane separately.",
            kind=int,
            metavar="N",
        ),
        defaults=SettingOption(
            "Use the defaults for pictures or those for tensors. Default: by the format of the file.",
            names=lambda: list(InputKind),
            metavar="KIND",
        ),
    ),
    **_panel(
        LAYER,
        stride=SettingOption(
            "Pixels from one output to the next, as in torch. Default: as recorded in the files, else 1.",
            metavar="N|NH,NW",
        ),
        dilation=SettingOption(
            "Pixels from one tap to the next. Default: as recorded in the files, else 1.", metavar="N|NH,NW"
        ),
        groups=SettingOption(
            "Sets of channels that the kernel does not mix. Default: as recorded in the files, else 1.",
            kind=int,
            metavar="N",
        ),
        transposed=SettingOption(
            "The layer is a transposed convolution, with taps of shape (C_in, C_out / groups, kH, kW). Default: as "
            "recorded in the files.",
            kind=bool,
        ),
        output_padding=SettingOption(
            "Pixels added to the smallest possible output of a transposed layer, as in torch. Default: as recorded in "
            "the files, else 0.",
            metavar="N|NH,NW",
        ),
        input_size=SettingOption(
            "Size of the restored images, if a stride allows several. Default: stride × output, else the smallest.",
            metavar="H,W",
        ),
    ),
    **_panel(
        PENALTY,
        lam=SettingOption(
            "λ, the strength of smoothing (weight of the penalty, relative to σ²max): one number, or one for each "
            "channel, as 0.1,0.02,0.1; 0 for the pseudo-inverse; auto to choose it from the data. Default: auto for "
            "pictures, 1e-6 for tensors.",
            metavar="auto|λ|λ,λ,...",
        ),
        lambda_rule=SettingOption(
            f"How λ is chosen from the data: {', '.join(LambdaRule)}. Default: gcv; for 8-bit photographs whiteness, "
            "if its λ is more than ten times larger.",
            names=lambda: list(LambdaRule),
        ),
        penalty=SettingOption(
            f"What the penalty keeps small: {', '.join(PENALTIES)}. Default: gradient for pictures, identity for "
            "tensors.",
            names=lambda: list(PENALTIES),
        ),
        spacing=SettingOption(
            "Distance between neighboring pixels along each axis of space, in any unit, as 3,1,1 for planes three "
            "times as far apart as pixels. Penalty and total variation divide differences by it. Default: as the file "
            "says, else equal.",
            metavar="S,S,...",
        ),
        noise_sigma=SettingOption(
            "Standard deviation of the noise, in units of the samples, or of light on the same scale if --light is "
            "linear. Default: auto, which estimates it.",
            metavar="auto|σ",
        ),
        noise=SettingOption(
            "Spectrum of the noise: white, or auto to estimate it. With auto, saturated samples are lower bounds; with "
            "white they are measurements. Default: auto for pictures, white for tensors.",
            names=lambda: ["white", "auto"],
            metavar="white|auto",
        ),
    ),
    **_panel(
        PRIOR,
        nonnegative=SettingOption("Allow no negative pixels.", kind=bool),
        prior=SettingOption(
            f"What to assume about the image: {', '.join(prior_names())}. Default: auto: photo (learned from "
            "photographs) for 8-bit pictures with a tone curve, otherwise quadratic. tv expects flat regions with "
            "sharp edges.",
            names=lambda: ["auto", *prior_names()],
        ),
        weight=SettingOption(
            "Weight of the total variation, in units of the samples. Default: auto, from the noise.", metavar="auto|V"
        ),
        strength=SettingOption(
            "For prior photo: smoother above 1, sharper below. Default: 1, the estimated noise.",
            kind=float,
            least=0.0,
        ),
        gain=SettingOption(
            "For method richardson-lucy: size of one count of light, in units of the samples. The iteration then "
            "stops at the Poisson noise. auto estimates the size from the data. Default: stop where the estimate best "
            "predicts samples that it did not use.",
            metavar="auto|V",
        ),
        iterations=SettingOption(
            "Number of iterations of method richardson-lucy, or of prior tv. Default: stop at the noise or at "
            "--tolerance.",
            kind=int,
            least=1,
        ),
    ),
    **_panel(
        SOLVER,
        method=SettingOption(
            f"How to solve: {', '.join(method_names())}. Default: auto, the cheapest.",
            names=lambda: list(method_names()),
        ),
        tolerance=SettingOption(
            "Stop when the certificate (relative gradient, 0 is exact) is this small. Default: 1e-6 in float32, 1e-10 "
            "in float64; 1e-5 for richardson-lucy; 7e-2 for prior tv, which also waits for steps below 1.2 % of the "
            "contrast.",
            kind=float,
        ),
        max_iterations=SettingOption("Largest number of iterations. Default: 2000.", kind=int, least=1),
        max_memory=SettingOption(
            "Memory for images and solving, such as 8GiB or 500MB; Python and torch take another 300 to 400 MB. "
            "Default: the free memory; half of it in blocks.",
            metavar="SIZE",
            read=parse_memory,
        ),
        dtype=SettingOption(
            "Precision of the arithmetic: float32 or float64. Default: float64 for float64 data, else float32.",
            names=lambda: list(ArithmeticDType),
            metavar="TYPE",
        ),
    ),
    **_panel(
        ERROR,
        predict=SettingOption(
            "Predict the error of every pixel; implied by --truth, --error-map, --trust-mask and --report.", kind=bool
        ),
        seed=SettingOption(
            "Seed of the random images of the predicted error. Default: 0.", kind=int, least=0, metavar="N"
        ),
    ),
}


def layer_options(settings: ReconstructionSettings | LayerOptions, typed: Container[str]) -> dict[str, object]:
    """Return the options of a layer that differ from a plain convolution, or that were typed."""
    options: dict[str, object] = {}
    for name in LAYER_SETTINGS:
        value, is_plain = getattr(settings, name), getattr(settings, name) == getattr(PLAIN, name)
        if is_plain and name not in typed:
            continue
        options[option_name(name)] = as_typed(name, value)
    return options


def read_settings(typed: SettingValues) -> SettingValues:
    """Read the typed settings; a text that is no value of its setting is a `UsageError`."""
    given = {name: value for name, value in typed.items() if value is not None}
    return {name: SETTINGS_OPTIONS[name].read(v) if isinstance(v, str) else v for name, v in given.items()}
