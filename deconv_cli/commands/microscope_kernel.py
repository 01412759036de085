"""Optics that a file names or words describe, and `deconv kernel microscope`, which computes their kernel.

The words are `microscope:na=1.4,emission=520+610,mode=confocal`; a plus joins the values of the channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deconv_cli.commands.kernel_output import KernelAnswer, checked_channel, numbers_of_axes, parse_size_of_stack
from deconv_cli.commands.option_groups import optional
from deconv_cli.errors import UsageError
from deconv_cli.vocabulary import format_size, shortened

if TYPE_CHECKING:
    from deconv_cli.io import ImageFile
    from deconv_cli.kernels.microscope import Microscope

EXAMPLE = "Example: deconv kernel microscope na=1.4,emission=520 --spacing 0.2,0.1,0.1 -o psf.tif"
WORDS = {
    "na": "numerical_aperture",
    "emission": "emission",
    "excitation": "excitation",
    "mode": "mode",
    "immersion": "immersion_index",
    "sample": "sample_index",
    "depth": "depth",
    "pinhole": "pinhole",
    "sheet": "sheet",
}
"""Words at the prompt, and the settings of a microscope that they set."""
OIL, WATER, AIR = 1.515, 1.333, 1.0
HIGHEST_OF_AIR, HIGHEST_OF_WATER = 0.95, 1.27
"""The largest numerical apertures of dry objectives, and of those for water."""

Values = dict[str, tuple[str, ...]]
"""The text for each setting: one for all channels, or one for each."""


def microscope(
    answer: KernelAnswer,
    words: Annotated[
        str,
        typer.Argument(
            metavar="WORDS",
            help=f"Values of the optics: {', '.join(f'{word}=V' for word in WORDS)}, separated by commas; wavelengths "
            "in nm, lengths in µm, the pinhole in Airy units, immersion and sample by refractive index; mode "
            "widefield, confocal, two-photon or light-sheet.",
        ),
    ] = "",
    image: Path | None = optional("--image FILE", "Take missing values from the metadata of this file (OME, ImageJ)."),
    spacing: str | None = optional("--spacing [DZ,]DY,DX", "Distance between samples along each axis, in µm."),
    size: str | None = optional(
        "--size D|[D,]H,W",
        "Samples along each axis, odd, or only the number of planes. Default: enough to hold most of the light. A "
        "wide field gets 2D − 1 planes for the D planes of --image, else 63, each as wide as the cone of light.",
    ),
    channel: int = optional("--channel N", "Which channel of several, from 0.", min=0, default=0),
) -> None:
    """Compute a point-spread function from the optics."""
    from deconv_cli.io import read_image
    from deconv_cli.kernels.microscope import MAX_SIDE, microscope_psf, sampling_notes

    answer.check(image or Path.cwd())
    read = None if image is None else read_image(image)
    if read is not None:
        read = read.spanned_by(read.named_dimensions or read.dimensions)
    steps = None if spacing is None else numbers_of_axes(spacing, "--spacing", (2, 3), float)
    microscopes, assumed = describe_optics(read, read_words(f"microscope:{words}"), steps)
    chosen = microscopes[checked_channel(channel, len(microscopes))]
    n_axes = len(chosen.spacing)
    wanted = chosen.psf_size(None if read is None else tuple(read.values.shape[2:]))
    if size is not None:
        wanted = parse_size_of_stack(size, n_axes)
    if len(wanted) < n_axes:
        wanted = (*wanted, *chosen.psf_size((wanted[0] // 2 + 1, MAX_SIDE, MAX_SIDE))[1:])
    psf = microscope_psf(chosen, wanted)
    notes = [*assumed, *sampling_notes([chosen], [psf])]
    record: dict[str, Any] = {
        "command": "kernel microscope",
        "input": None if image is None else str(image),
        "microscope": {**vars(chosen), "spacing": list(chosen.spacing)},
        "shape": list(psf.shape),
        "notes": notes,
    }
    sample = "as the immersion" if chosen.sample_index is None else f"{chosen.sample_index:g}"
    rows = [
        ("objective", f"numerical aperture {chosen.numerical_aperture:g}, immersion {chosen.immersion_index:g}"),
        ("sample", f"{sample}, {chosen.depth:g} µm deep"),
        ("light", f"{chosen.mode}, emission {chosen.emission:g} nm"),
        ("samples", f"{format_size(psf.shape)} at {' × '.join(f'{step:g}' for step in chosen.spacing)} µm, sum 1"),
        ("Nyquist", f"{' × '.join(f'{step:.3g}' for step in chosen.finest)} µm"),
    ]
    taps = psf.flip(tuple(range(n_axes)))
    answer.give("microscope", record, rows, notes, taps=taps, n_axes=n_axes, spacing=chosen.spacing)


def read_words(text: str) -> Values:
    """Read `microscope:na=1.4,emission=520+610`; an unknown word, or one without a value, is a `UsageError`."""
    found: Values = {}
    for part in filter(None, text.partition(":")[2].split(",")):
        word, equals, value = (each.strip().lower() for each in part.partition("="))
        if word not in WORDS or not equals or not value:
            raise UsageError(
                f"the optics are written as in “na=1.4,emission=520”, with the names {', '.join(WORDS)}, but one part "
                f"is '{shortened(part.strip())}'."
            )
        found[WORDS[word]] = tuple(value.split("+"))
    return found


def describe_optics(
    image: ImageFile | None, given: Values, spacing: tuple[float, ...] | None = None
) -> tuple[tuple[Microscope, ...], tuple[str, ...]]:
    """Combine the typed words, the metadata of a file, and assumptions.

    Args:
        image: the file, with the axes that the kernel spans last; `None` for none.
        given: the typed words.
        spacing: typed distance of samples in µm.

    Returns:
        The microscope of each channel, and a sentence for each assumption.

    Raises:
        UsageError: the numerical aperture, a wavelength or the spacing is not known, or a value is not possible.
    """
    from deconv_cli.io.metadata import OpticsMetadata, read_optics
    from deconv_cli.kernels.microscope import Microscope

    found = OpticsMetadata() if image is None else read_optics(image.native_fields)
    steps = spacing or (None if image is None else image.spacing)
    if steps is None:
        raise UsageError(
            "the distance between samples is not known; give it in µm with --spacing DZ,DY,DX or DY,DX"
            + (" to deconv invert or deconv kernel microscope." if image is not None else ".")
        )
    typed = {name: [_value(name, text) for text in texts] for name, texts in given.items()}
    n_channels = max([1, *map(len, typed.values())]) if image is None else image.values.shape[1]
    assumed: list[str] = []
    known = {"numerical_aperture": [found.numerical_aperture], "emission": found.emissions}
    values: dict[str, Sequence[Any]] = {"spacing": [tuple(steps)], **known, **typed}
    if values["numerical_aperture"] == [None]:
        several = f", which lists {found.n_objectives} objectives without naming the one that was used"
        _refuse_unknown("numerical aperture", "na", image, several if found.n_objectives > 1 else "")
    if "emission" not in typed and not any(values["emission"]):
        _refuse_unknown("wavelength of the emission", "emission", image)
    _refuse_gaps("emission", values["emission"])
    if "mode" not in typed:
        values["mode"] = _modes(found.modes, assumed)
    if "immersion_index" not in typed:
        index = found.immersion_index
        if index is None:
            aperture = values["numerical_aperture"][0]
            index = AIR if aperture <= HIGHEST_OF_AIR else WATER if aperture <= HIGHEST_OF_WATER else OIL
            assumed.append(f"refractive index {index:g} of the immersion, usual for this numerical aperture")
        values["immersion_index"] = [index]
    if found.excitations and "excitation" not in typed:
        values["excitation"] = found.excitations
        if {"confocal", "two-photon"} & set(values["mode"]):
            _refuse_gaps("excitation", found.excitations)
    if "sample_index" not in values:
        assumed.append("a sample of the same refractive index as the immersion")
    if "confocal" in values["mode"] and "pinhole" not in values:
        why = ", since the file gives its diameter, but not its magnification" if found.has_pinholes else ""
        assumed.append(f"a pinhole of one Airy unit{why}")
    for name, each in values.items():
        if len(each) not in (1, n_channels):
            raise UsageError(
                f"{name} was given for {len(each)} channels, but there are {n_channels}; give one for each."
            )
    made = [Microscope(**{name: each[c % len(each)] for name, each in values.items()}) for c in range(n_channels)]
    return tuple(made), tuple(f"assumed: {sentence}" for sentence in assumed)


def _refuse_unknown(what: str, word: str, image: ImageFile | None, more: str = "") -> None:
    raise UsageError(
        f"the {what} is not known{'' if image is None else ' from the file'}{more}; add the word {word} with its "
        "value, as in microscope:na=1.4,emission=520+610, with wavelengths in nm, one for each channel."
    )


def _refuse_gaps(word: str, wavelengths: Sequence[Any]) -> None:
    """Refuse channels whose wavelength the file lacks, such as those of transmitted light."""
    missing = [str(c) for c, wavelength in enumerate(wavelengths, start=1) if wavelength is None]
    if missing:
        known = "+".join("NM" if wavelength is None else f"{wavelength:g}" for wavelength in wavelengths)
        raise UsageError(
            f"the file does not say the {word} of channel {' and '.join(missing)}; give the values of all channels "
            f"with the word {word}, as {known}, or remove channels without such light from the file."
        )


def _value(name: str, text: str) -> str | float:
    if name == "mode":
        return text
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{name} must be a number, but is '{shortened(text)}'.") from None


def _modes(words: tuple[str | None, ...], assumed: list[str]) -> list[str]:
    """List the mode of each channel, `widefield` if OME's word is missing or has no model; adds to `assumed`."""
    from deconv_cli.io.metadata import MODES

    found = [MODES.get(word or "") for word in words] or [None]
    if not any(words):
        assumed.append("mode widefield")
    elif None in found:
        strange = [
            f"{c} ({f'{word}, of which there is no model' if word else 'the file says none'})"
            for c, (word, mode) in enumerate(zip(words, found, strict=True), start=1)
            if mode is None
        ]
        assumed.append(f"mode widefield for channel {' and '.join(strange)}")
    return [mode or "widefield" for mode in found]
