"""`deconv kernel make`, `extract`, `from-beads` and `microscope`: kernels of formulas, layers, beads and optics."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deconv_cli.commands.console import print_document, print_table
from deconv_cli.commands.kernel_output import (
    AnswerOptions,
    OutputFile,
    check_kernel_output,
    numbers_of_axes,
    print_kernel,
    without_paths,
    write_kernel,
)
from deconv_cli.commands.microscope_kernel import WORDS, describe_optics, read_words
from deconv_cli.commands.option_groups import option
from deconv_cli.commands.user_code import ModelOptions, open_module
from deconv_cli.errors import UsageError
from deconv_cli.parts import KERNEL_SOURCES
from deconv_cli.vocabulary import SCHEMA, format_percent, format_size

if TYPE_CHECKING:
    from deconv_cli.kernels.bead_psf import BeadPsf
    from deconv_cli.models.layers import ModelLayer


ACCURATE = 1e-3
"""Largest error of the transform that gets no note."""

MAKE_EXAMPLE = "Example: deconv kernel make 'disk:4*motion:9@30' -o blur.npy"
EXTRACT_EXAMPLE = "Example: deconv kernel extract sample_images/pnet.pt --layer conv1 -o conv1.safetensors"


def make(
    words: Annotated[
        str,
        typer.Argument(
            metavar="FORMULA",
            help=f"A formula ({', '.join(KERNEL_SOURCES)}) with its numbers, as disk:5.2, or several blurs in a row, "
            "as 'disk:4*motion:9@30'. The factor shift:DOWN@RIGHT moves the kernel by fractions of a pixel. Lengths "
            "are in pixels.",
        ),
    ],
    printed: AnswerOptions,
    signal: Annotated[
        bool,
        option(
            "--signal", "Make the kernel of a signal, with one axis: the blur of a line that runs across this axis."
        ),
    ] = False,
    size: Annotated[
        str | None,
        option(
            "--size N|[D,]H,W",
            "Taps along each axis, odd. A larger size holds more of the long tails of airy and moffat. Default: the "
            "taps that matter, and a part of long tails.",
        ),
    ] = None,
    output: OutputFile = None,
) -> None:
    """Make a kernel of sum 1 from a formula."""
    from deconv_cli.kernels.sources.formula import make_kernel, read_formula, transform_error

    check_kernel_output(output, Path.cwd(), force=printed.force, is_picture=not signal)
    dimensions = 1 if signal else None
    wanted = None if size is None else numbers_of_axes(size, "--size", (1, 2, 3), int)
    taps = make_kernel(words, dimensions=dimensions, size=wanted[0] if wanted and len(wanted) == 1 else wanted)
    error = transform_error(read_formula(words, dimensions), taps.flip(tuple(range(taps.ndim))))
    record = {
        "schema": SCHEMA,
        "command": "kernel make",
        "kernel": words,
        "shape": list(taps.shape),
        "sum": float(taps.sum()),
        "largest": float(taps.max()),
        "transform_error": error,
        "output": None if output is None else str(output),
    }
    write_kernel(output, taps, record, taps.ndim)
    shape = format_size(taps.shape)
    rows = [
        ("taps", f"{shape}, sum {record['sum']:.6g}, largest {record['largest']:.4g}"),
        ("transform", f"largest error {error:.2g}, up to half of Nyquist's frequency"),
    ]
    note = (
        f"the {shape} taps cut the tails off, so the transform is wrong by {error:.2g}; a larger --size holds more of "
        "the tails"
    )
    print_kernel(printed, words, rows, [note] if error > ACCURATE else [], record, output)


def extract(
    model_file: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="The model: .safetensors, or a state dict or a whole module of torch.save.",
        ),
    ],
    options: ModelOptions,
    printed: AnswerOptions,
    layer: Annotated[str | None, option("--layer NAME", "Name of the layer. Without it, list the layers.")] = None,
    output: Annotated[
        Path | None,
        option(
            "--output -o FILE.safetensors",
            "Write the layer's weight and bias, with its stride, padding and so on. --kernel reads the file.",
        ),
    ] = None,
) -> None:
    """List the convolutions of a model, or extract one, without running any code in the file."""
    from deconv_cli.io.atomic import check_output_path
    from deconv_cli.models.layers import find_layer, list_layers
    from deconv_cli.saved_files import save_layer

    if output is not None:
        check_output_path(output, model_file, force=printed.force)
    stored, module = open_module(model_file, options)
    layers = list_layers(stored, module)
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "command": "kernel extract",
        "input": str(model_file),
        "model": {"format": str(stored.kind), "sha256": stored.sha256},
        "notes": list(stored.notes),
    }
    if layer is None and output is None and len(layers) > 1:
        if printed.as_json:
            print_document(record | {"layers": [one.describe() for one in layers]})
        else:
            rows = [(one.name, ", ".join(text for _, text in _layer_rows(one))) for one in layers]
            print_table(str(model_file), rows, to_stdout=True)
        return
    found = find_layer(stored, layers, layer)
    record |= {"layer": found.describe(), "output": None if output is None else str(output)}
    if output is not None:
        save_layer(found, output, record=without_paths(record), force=printed.force)
    notes = list(stored.notes)
    if not found.geometry:
        notes.append(
            "the file holds only weights, without stride, padding, dilation and groups; name the class of the model "
            "here with --model to record them, or give --stride, --padding and the others to forward and invert"
        )
    rows = [("layer", found.name), *_layer_rows(found)]
    print_kernel(printed, str(model_file), rows, notes, record, output)


def _layer_rows(layer: ModelLayer) -> list[tuple[str, str]]:
    """Describe a layer: its kind, its taps, and what differs from a plain convolution."""
    plain = {"padding_mode": "zeros", "transposed": False, "padding": 0, "output_padding": 0}
    settings = []
    for name, value in layer.geometry.items():
        values = value if isinstance(value, list) else [value]
        if any(each != plain.get(name, 1) for each in values):
            settings.append(f"{name} {','.join(map(str, values if len(set(values)) > 1 else values[:1]))}")
    taps = format_size(layer.weight.shape) + ("" if layer.bias is None else ", with a bias")
    rows = [("kind", layer.kind or "weights alone"), ("taps", taps)]
    return rows + ([("geometry", ", ".join(settings))] if settings else [])


BEADS_EXAMPLE = "Example: deconv kernel from-beads beads.tif --bead-diameter 0.1 -o psf.tif"
MICROSCOPE_EXAMPLE = "Example: deconv kernel microscope na=1.4,emission=520 --spacing 0.2,0.1,0.1 -o psf.tif"


def from_beads(
    beads: Annotated[Path, typer.Argument(metavar="BEADS", help="A picture or stack of beads, or stars.")],
    printed: AnswerOptions,
    output: OutputFile = None,
    size: Annotated[
        str | None,
        option(
            "--size D|[D,]H,W",
            "Samples along each axis, odd, or only the number of planes. Default: as many as rise above the noise.",
        ),
    ] = None,
    bead_diameter: Annotated[
        float,
        option(
            "--bead-diameter V",
            "Diameter of the beads, in µm, or in samples if no spacing is known; the size of the beads is removed "
            "from the result.",
            min=0,
        ),
    ] = 0.0,
    spacing: Annotated[
        str | None,
        option("--spacing [DZ,]DY,DX", "Distance between samples along each axis, in µm. Default: the file's."),
    ] = None,
    channel: Annotated[int | None, option("--channel N", "Which channel, from 0.", min=0)] = None,
    axes: Annotated[
        str | None, option("--axes LETTERS", "Read the file's axes as these, for example ZYX or CZYX.")
    ] = None,
) -> None:
    """Measure a point-spread function on beads or stars: average those that are not close to another one."""
    from deconv_cli.io import read_image
    from deconv_cli.kernels.bead_psf import psf_from_beads
    from deconv_cli.tone_curve import limits_of

    check_kernel_output(output, beads, force=printed.force)
    image = read_image(beads, axes=axes)
    image = image if image.values.shape[0] == 1 else image.spanned_by(3)
    if len(image.values) > 1:
        raise UsageError(f"'{beads}' holds {len(image.values)} stacks; give one, or name its axes with --axes.")
    n_channels = image.values.shape[1]
    if channel is None and n_channels > 1:
        raise UsageError(f"'{beads}' holds {n_channels} channels; choose one with --channel N.")
    samples = image.values[0, _checked_channel(channel or 0, n_channels)]
    steps = image.spacing if spacing is None else numbers_of_axes(spacing, "--spacing", (samples.ndim,), float)
    limits = limits_of(samples, image.dtype)
    found = psf_from_beads(
        samples,
        size=None if size is None else _parse_size(size, samples.ndim),
        bead_diameter=bead_diameter,
        spacing=steps,
        white=limits and limits[1],
    )
    record = {
        "schema": SCHEMA,
        "command": "kernel from-beads",
        "input": str(beads),
        "spacing": None if steps is None else list(steps),
        "bead_diameter": bead_diameter,
        "shape": list(found.psf.shape),
        "fwhm_samples": list(found.widths),
        "fwhm_scatter_samples": [value if math.isfinite(value) else None for value in found.scatter],
        "beads": {
            "used": found.n_used,
            "too_close": found.census.n_crowded,
            "saturated": found.census.n_saturated,
            "at_edge": found.census.n_at_edge,
            "unlike_the_others": found.n_unlike,
        },
        "background": found.background,
        "light_share": found.share,
        "outermost_plane": found.outermost,
        "output": None if output is None else str(output),
    }
    write_kernel(output, found.psf.flip(tuple(range(found.psf.ndim))), record, found.psf.ndim, steps)
    print_kernel(printed, str(beads), _bead_rows(found, steps), image.notes, record, output)


def microscope(
    printed: AnswerOptions,
    words: Annotated[
        str,
        typer.Argument(
            metavar="[WORDS]",
            help=f"Values of the optics: {', '.join(f'{word}=V' for word in WORDS)}, separated by commas; wavelengths "
            "in nm, lengths in µm, the pinhole in Airy units, immersion and sample by refractive index; mode "
            "widefield, confocal, two-photon or light-sheet.",
        ),
    ] = "",
    image: Annotated[
        Path | None, option("--image FILE", "Take missing values from the metadata of this file (OME, ImageJ).")
    ] = None,
    output: OutputFile = None,
    spacing: Annotated[
        str | None, option("--spacing [DZ,]DY,DX", "Distance between samples along each axis, in µm.")
    ] = None,
    size: Annotated[
        str | None,
        option(
            "--size D|[D,]H,W",
            "Samples along each axis, odd, or only the number of planes. Default: in a wide field 2D − 1 planes for "
            "the D planes of --image, or 63, as wide as the cone of light; in other modes enough to hold most of the "
            "light.",
        ),
    ] = None,
    channel: Annotated[int, option("--channel N", "Which channel of several, from 0.", min=0)] = 0,
) -> None:
    """Compute a point-spread function from the optics."""
    from deconv_cli.io import read_image
    from deconv_cli.kernels.microscope import MAX_SIDE, microscope_psf, sampling_notes

    check_kernel_output(output, image or Path.cwd(), force=printed.force)
    read = None if image is None else read_image(image)
    if read is not None:
        read = read.spanned_by(read.named_dimensions or read.dimensions)
    steps = None if spacing is None else numbers_of_axes(spacing, "--spacing", (2, 3), float)
    microscopes, assumed = describe_optics(read, read_words(f"microscope:{words}"), steps)
    chosen = microscopes[_checked_channel(channel, len(microscopes))]
    n_axes = len(chosen.spacing)
    wanted = chosen.psf_size(None if read is None else tuple(read.values.shape[2:]))
    if size is not None:
        wanted = _parse_size(size, n_axes)
    if len(wanted) < n_axes:
        wanted = (*wanted, *chosen.psf_size((wanted[0] // 2 + 1, MAX_SIDE, MAX_SIDE))[1:])
    psf = microscope_psf(chosen, wanted)
    notes = [*assumed, *sampling_notes([chosen], [psf])]
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "command": "kernel microscope",
        "input": None if image is None else str(image),
        "microscope": {**vars(chosen), "spacing": list(chosen.spacing)},
        "shape": list(psf.shape),
        "notes": notes,
        "output": None if output is None else str(output),
    }
    write_kernel(output, psf.flip(tuple(range(n_axes))), record, n_axes, chosen.spacing)
    sample = "as the immersion" if chosen.sample_index is None else f"{chosen.sample_index:g}"
    rows = [
        ("objective", f"numerical aperture {chosen.numerical_aperture:g}, immersion {chosen.immersion_index:g}"),
        ("sample", f"{sample}, {chosen.depth:g} µm deep"),
        ("light", f"{chosen.mode}, emission {chosen.emission:g} nm"),
        ("samples", f"{format_size(psf.shape)} at {' × '.join(f'{step:g}' for step in chosen.spacing)} µm, sum 1"),
        ("Nyquist", f"{' × '.join(f'{step:.3g}' for step in chosen.finest)} µm"),
    ]
    print_kernel(printed, "microscope", rows, notes, record, output)


def _checked_channel(channel: int, n_channels: int) -> int:
    if channel >= n_channels:
        raise UsageError(f"--channel must be from 0 to {n_channels - 1} here, but is {channel}.")
    return channel


def _parse_size(text: str, n_axes: int) -> tuple[int, ...]:
    """Read `--size`: a number for each axis, or only the planes of a stack."""
    return numbers_of_axes(text, "--size", (1, 3) if n_axes == 3 else (n_axes,), int)


def _bead_rows(found: BeadPsf, steps: tuple[float, ...] | None) -> list[tuple[str, str]]:
    from deconv_cli.kernels.bead_psf import describe_census

    left_out = list(filter(None, [describe_census(found.census)]))
    left_out += [f"{found.n_unlike} unlike the others"] if found.n_unlike else []
    rows = [("points", f"{found.n_used} averaged" + (f"; not used: {', '.join(left_out)}" if left_out else ""))]
    unit = "samples" if steps is None else "µm"
    for i, name in enumerate("ZYX"[-found.psf.ndim :]):
        step = 1.0 if steps is None else steps[i]
        scatter = f" ± {found.scatter[i] * step:.2g}" if math.isfinite(found.scatter[i]) else ""
        rows.append((f"FWHM {name}", f"{found.widths[i] * step:.4g}{scatter} {unit}"))
    return [
        *rows,
        ("size", f"{format_size(found.psf.shape)} samples, sum 1"),
        ("light", f"{format_percent(found.share)} of a point's light rises above the noise"),
        ("background", f"{found.background:.5g}, subtracted"),
    ]
