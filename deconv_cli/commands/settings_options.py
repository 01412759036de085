"""The settings of a reconstruction at the prompt: the wording of each option, and how its text is read.

This is the second of the two places where an option is added; the first is its field in `settings.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from deconv_cli.errors import FileAccessError, UsageError
from deconv_cli.layer_options import PLAIN, LayerOptions
from deconv_cli.noise_model import NoiseModel
from deconv_cli.parts import BOUNDARIES, PENALTIES, method_names, prior_names
from deconv_cli.settings import ReconstructionSettings, as_typed, option_name
from deconv_cli.vocabulary import (
    ArithmeticDType,
    InputKind,
    LambdaRule,
    Light,
    parse_memory,
    parse_numbers,
    parse_padding,
)

_MAX_NOISE_BYTES = 64 * 2**20
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


def read_noise(text: str) -> str | tuple[NoiseModel, ...]:
    """Read `white`, `auto`, or the noise from the JSON document of a run of `deconv invert`.

    A document of one's own is an object with the member `noise_model`, a list with one record for all channels or one
    for each: `{"noise_model": [{"sigma": 2.5, "spectrum": [...]}]}`.

    Returns:
        The models; the text itself where it names no file.

    Raises:
        UsageError: the file does not exist, or says nothing of noise.
        FileAccessError: it cannot be read.
    """
    path = Path(text)
    if text in ("white", "auto") or not path.is_file():
        if path.suffix:
            raise UsageError(f"the file of noise '{text}' does not exist; check the name and the folder.")
        return text
    from deconv_cli.io.records import open_sealed

    try:
        content = path.read_text(encoding="utf-8") if path.stat().st_size <= _MAX_NOISE_BYTES else ""
        found = open_sealed(content, needs_digest=False)
    except OSError as error:
        raise FileAccessError(f"'{text}' cannot be read: {error.strerror}.") from error
    except ValueError:
        found = {}
    records = found.get("noise_model")
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        raise UsageError(
            f"'{text}' has no list noise_model, as the JSON of deconv invert has, or does not fit its digest; write "
            "one with --json, or with an output file in .npy."
        )
    light = found.get("light") if found.get("light") in tuple(Light) else None
    return tuple(NoiseModel.of_record(record, source=text, light=light) for record in records)


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
            "What the blur acts on: linear for light, to which samples are converted by their ICC profile, gamma or "
            "sRGB, and back; stored for the samples as they are. Default: auto, what deconv forward recorded in the "
            "file; else linear for pictures but TIFF without a profile, and stored for tensors.",
            names=lambda: ["auto", *Light],
            metavar="auto|linear|stored",
        ),
        padding=SettingOption(
            "How far the kernel reached outside. Default: what deconv forward recorded, else same.",
            metavar="same|valid|full|N|NH,NW",
            read=parse_padding,
        ),
        dimensions=SettingOption(
            "Axes of space of the images: 1 for signals, 2 for pictures, 3 for stacks. Default: what file and kernel "
            "say. A kernel of fewer axes works on each plane by itself.",
            kind=int,
            metavar="N",
        ),
        defaults=SettingOption(
            "Use the defaults of pictures, or those of tensors. Default: by the format of the file.",
            names=lambda: list(InputKind),
            metavar="KIND",
        ),
    ),
    **_panel(
        LAYER,
        stride=SettingOption(
            "Pixels from one output to the next, as in torch. Default, here and for the next four: what the model "
            "file or deconv forward recorded, else 1.",
            metavar="N|NH,NW",
        ),
        dilation=SettingOption("Pixels from one tap to the next.", metavar="N|NH,NW"),
        groups=SettingOption("Sets of channels that the kernel does not mix.", kind=int, metavar="N"),
        transposed=SettingOption(
            "The layer is a transposed convolution, with taps of shape (C_in, C_out / groups, kH, kW).", kind=bool
        ),
        output_padding=SettingOption(
            "Of a transposed layer, by how many pixels its output is larger than the smallest possible.",
            metavar="N|NH,NW",
        ),
        input_size=SettingOption(
            "Size of the images, where a stride leaves several possible. Default: stride × output, else the smallest.",
            metavar="H,W",
        ),
    ),
    **_panel(
        PENALTY,
        lam=SettingOption(
            "Weight of the penalty, in units of σ²max, or one for each channel, as 0.1,0.02,0.1; 0 for the "
            "pseudo-inverse; auto to choose it from the data. Default: auto for pictures, 1e-6 for tensors.",
            metavar="auto|λ|λ,λ,...",
        ),
        lambda_rule=SettingOption(
            f"How λ is chosen from the data: {', '.join(LambdaRule)}. Default: gcv, and whiteness for photographs of 8 "
            "bits where it asks for more than ten times as much.",
            names=lambda: list(LambdaRule),
        ),
        penalty=SettingOption(
            f"What the penalty keeps small: {', '.join(PENALTIES)}. Default: gradient for pictures, identity for "
            "tensors.",
            names=lambda: list(PENALTIES),
        ),
        spacing=SettingOption(
            "Distances of neighboring pixels along each axis of space, in any unit, as 3,1,1 for planes three times as "
            "far apart as pixels: penalty and total variation divide differences by them. Default: all alike.",
            metavar="S,S,...",
        ),
        noise_sigma=SettingOption(
            "Standard deviation of the noise, in units of the samples, or of light on their scale where light is "
            "linear. Default: auto, estimated.",
            metavar="auto|σ",
        ),
        noise=SettingOption(
            "Spectrum of the noise: white; auto to estimate it; or the JSON of a run with the same noise. Full samples "
            "then count as 'at least this bright', under white as measurements. Default: auto for pictures, white for "
            "tensors.",
            metavar="white|auto|FILE",
            read=read_noise,
        ),
        quantization=SettingOption(
            "Step between neighboring stored values; the noise is at least that of rounding to them. "
            "Default: 1 for files of whole numbers, else 0.",
            kind=float,
            metavar="STEP",
        ),
        rcond=SettingOption(
            "Drop singular values up to this fraction of the largest (boundary circular; λ is then 0).", kind=float
        ),
    ),
    **_panel(
        PRIOR,
        nonnegative=SettingOption("Minimize among images without negative pixels.", kind=bool),
        prior=SettingOption(
            f"What the image is like: {', '.join(prior_names())}. Default: auto, which takes photo, learned from "
            "photographs, for 8-bit pictures with a tone curve, and else quadratic, a small penalty; tv is for flat "
            "regions with sharp edges.",
            names=lambda: ["auto", *prior_names()],
        ),
        weight=SettingOption(
            "Weight of the total variation, in units of the samples. Default: auto, from the noise.", metavar="auto|V"
        ),
        strength=SettingOption(
            "For prior photo: smoother above 1, sharper below. Default: 1, the noise that was found.",
            kind=float,
            least=0.0,
        ),
        gain=SettingOption(
            "For method richardson-lucy: units of the samples for one count of light, to stop at the noise of counts; "
            "auto estimates it from the data. Default: stop by samples that are held out.",
            metavar="auto|V",
        ),
        iterations=SettingOption(
            "Number of iterations of method richardson-lucy, or of prior tv. Default: until the noise or --tolerance "
            "ends them.",
            kind=int,
            least=1,
        ),
        rho=SettingOption(
            "For prior tv: the ρ of its iteration. Default: adapted to the image; in blocks the same for all.",
            kind=float,
            least=0.0,
        ),
    ),
    **_panel(
        SOLVER,
        method=SettingOption(
            f"How to solve: {', '.join(method_names())}. Default: auto, what costs least.",
            names=lambda: list(method_names()),
        ),
        tolerance=SettingOption(
            "Certificate at which an iteration stops. Default: 1e-6 in float32, 1e-10 in float64; 1e-5 for "
            "richardson-lucy; for prior tv 2e-2, once a step changes the estimate by less than 0.2 % of its contrast.",
            kind=float,
        ),
        max_iterations=SettingOption("Iterations at most. Default: 2000.", kind=int, least=1),
        max_memory=SettingOption(
            "Memory for images and solving, such as 8GiB or 500MB; Python and torch take 300 to 400 MB beside it. "
            "Default: what is free, and half of it in blocks.",
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
