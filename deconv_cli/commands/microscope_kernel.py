"""`--kernel microscope`: the kernel of each channel, from the optics that a file names and from words.

The words are `microscope:na=1.4,emission=520+610,mode=confocal`; a plus joins the values of the channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deconv_cli.commands.loaded_kernel import LoadedKernel
from deconv_cli.commands.option_groups import KernelOptions
from deconv_cli.errors import UsageError
from deconv_cli.vocabulary import Convention, Size, format_size, format_spacing, shortened

if TYPE_CHECKING:
    from torch import Tensor

    from deconv_cli.io import ImageFile
    from deconv_cli.kernels.microscope import Microscope

MICROSCOPE = "microscope"
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


def is_microscope(kernels: list[Path], options: KernelOptions) -> bool:
    """Return whether to compute the kernel from the optics, unless a file has that name; refuse other kernels too."""
    named = [k for k in kernels if str(k).partition(":")[0].lower() == MICROSCOPE and not k.exists()]
    if not named:
        return False
    given = [name for name, value in options.as_options().items() if value is not None]
    if len(kernels) > 1 or given:
        raise UsageError(
            f"--kernel microscope gives every channel its kernel, so {given[0] if given else 'another kernel'} has no "
            "effect; leave it out."
        )
    return True


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
    values: dict[str, Sequence[Any]] = {"spacing": [tuple(steps)], **typed}
    if "numerical_aperture" not in typed:
        values["numerical_aperture"] = [found.numerical_aperture]
    if "emission" not in typed:
        values["emission"] = found.emissions
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


def load_microscope(
    text: str,
    image: ImageFile,
    dimensions: int | None = None,
    whole: Size | None = None,
    spacing: tuple[float, ...] | None = None,
    *,
    is_compact: bool = False,
) -> LoadedKernel:
    """Compute the kernel of each channel of an image.

    Args:
        text: the kernel as typed.
        image: the file.
        dimensions: typed number of axes that the kernel spans.
        whole: samples of the file along Z, Y and X, if `image` is only a corner of it.
        spacing: distances of the samples in µm, for a file that does not say them.
        is_compact: leave out light more than four axial widths out of focus.
    """
    from deconv_cli.kernels.kernel import Kernel, stack_kernels
    from deconv_cli.kernels.microscope import microscope_psf, sampling_notes
    from deconv_cli.report.run import KernelInput

    n_axes = dimensions or image.named_dimensions or image.dimensions
    spanned = image.spanned_by(n_axes)
    if spanned.spacing is None and spacing is not None and len(spacing) != n_axes:
        raise UsageError(f"spacing must hold a distance in µm for each of {n_axes} axes, but holds {len(spacing)}.")
    microscopes, assumed = describe_optics(spanned, read_words(text), spanned.spacing or spacing)
    image_size = tuple(spanned.values.shape[2:]) if whole is None else whole[-n_axes:]
    sizes = [microscope.psf_size(image_size, is_compact=is_compact) for microscope in microscopes]
    made = [microscope_psf(microscope, size) for microscope, size in zip(microscopes, sizes, strict=True)]
    taps: Tensor = made[0] if len(made) == 1 else stack_kernels(made)
    taps = taps.flip(tuple(range(-n_axes, 0)))
    kernel = Kernel.of_any(taps, dimensions=n_axes)
    source = KernelInput(kernel, text, Convention.CORRELATION, None, None, has_bias=False)
    first = microscopes[0]
    seen = ", ".join(f"{microscope.emission:g}" for microscope in microscopes)
    notes = [
        f"kernels computed for numerical aperture {first.numerical_aperture:g}, immersion {first.immersion_index:g}, "
        f"emission {seen} nm, {', '.join(dict.fromkeys(microscope.mode for microscope in microscopes))}, samples "
        f"{format_spacing(first.spacing)} apart",
        *assumed,
        *sampling_notes(microscopes, made),
    ]
    if sizes != [microscope.psf_size(image_size) for microscope in microscopes]:
        notes.append(
            f"the kernel was cut to {format_size(sizes[0])}, since an exact inverse with all its light takes very "
            'long; method="richardson-lucy" uses the whole kernel, and is more accurate for a stack of a wide field'
        )
    again = {"--kernel": text, "--dimensions": n_axes}
    return LoadedKernel(source, taps, None, tuple(notes), again, spacing=first.spacing)
