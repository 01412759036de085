"""`deconv kernel make`, `extract` and `from-beads`: kernels of formulas, layers and beads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deconv_cli.commands.console import Rows, print_document, print_table
from deconv_cli.commands.kernel_output import (
    KernelAnswer,
    checked_channel,
    numbers_of_axes,
    parse_size_of_stack,
    without_paths,
)
from deconv_cli.commands.option_groups import optional
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
    answer: KernelAnswer,
    signal: bool = optional(
        "--signal",
        "Make the kernel of a signal, with one axis: the blur of a line that runs across this axis.",
        default=False,
    ),
    size: str | None = optional(
        "--size N|[D,]H,W",
        "Taps along each axis, odd. A larger size holds more of the long tails of airy and moffat. Default: the "
        "taps that matter, and a part of long tails.",
    ),
) -> None:
    """Make a kernel of sum 1 from a formula."""
    from deconv_cli.kernels.sources.formula import make_kernel, read_formula, transform_error

    answer.check(Path.cwd(), is_picture=not signal)
    dimensions = 1 if signal else None
    wanted = None if size is None else numbers_of_axes(size, "--size", (1, 2, 3), int)
    taps = make_kernel(words, dimensions=dimensions, size=wanted[0] if wanted and len(wanted) == 1 else wanted)
    error = transform_error(read_formula(words, dimensions), taps.flip(tuple(range(taps.ndim))))
    record = {
        "command": "kernel make",
        "kernel": words,
        "shape": list(taps.shape),
        "sum": float(taps.sum()),
        "largest": float(taps.max()),
        "transform_error": error,
    }
    shape = format_size(taps.shape)
    rows = [
        ("taps", f"{shape}, sum {record['sum']:.6g}, largest {record['largest']:.4g}"),
        ("transform", f"largest error {error:.2g}, up to half of Nyquist's frequency"),
    ]
    note = (
        f"the {shape} taps cut the tails off, so the transform is wrong by {error:.2g}; a larger --size holds more of "
        "the tails"
    )
    answer.give(words, record, rows, [note] if error > ACCURATE else [], taps=taps, n_axes=taps.ndim)


@dataclass(frozen=True)
class LayerAnswer(KernelAnswer):
    """The file of a layer, and what is printed."""

    output: Path | None = optional(
        "--output -o FILE.safetensors",
        "Write the layer's weight and bias, with its stride, padding and so on. --kernel reads the file.",
    )


def extract(
    model_file: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="The model: .safetensors, or a state dict or a whole module of torch.save.",
        ),
    ],
    options: ModelOptions,
    answer: LayerAnswer,
    layer: str | None = optional("--layer NAME", "Name of the layer. Without it, list the layers."),
) -> None:
    """List the convolutions of a model, or extract one, without running any code in the file."""
    from deconv_cli.io.atomic import check_output_path
    from deconv_cli.models.layers import find_layer, list_layers
    from deconv_cli.saved_files import save_layer

    output = answer.output
    if output is not None:
        check_output_path(output, model_file, force=answer.force)
    stored, module = open_module(model_file, options)
    layers = list_layers(stored, module)
    notes = list(stored.notes)
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "command": "kernel extract",
        "input": str(model_file),
        "model": {"format": str(stored.kind), "sha256": stored.sha256},
        "notes": list(stored.notes),
    }
    if layer is None and output is None and len(layers) > 1:
        if answer.as_json:
            print_document(record | {"layers": [one.describe() for one in layers]})
        else:
            rows = [(one.name, ", ".join(text for _, text in _layer_rows(one))) for one in layers]
            print_table(str(model_file), rows, to_stdout=True)
        return
    found = find_layer(stored, layers, layer)
    record |= {"layer": found.describe(), "output": None if output is None else str(output)}
    if output is not None:
        save_layer(found, output, record=without_paths(record), force=answer.force)
    if not found.geometry:
        notes.append(
            "the file holds only weights, without stride, padding, dilation and groups; name the class of the model "
            "here with --model to record them, or give --stride, --padding and the others to forward and invert"
        )
    rows = [("layer", found.name), *_layer_rows(found)]
    answer.show(str(model_file), record, rows, notes, None if output is None else str(output))


def _layer_rows(layer: ModelLayer) -> Rows:
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


def from_beads(
    beads: Annotated[Path, typer.Argument(metavar="BEADS", help="A picture or stack of beads, or stars.")],
    answer: KernelAnswer,
    size: str | None = optional(
        "--size D|[D,]H,W",
        "Samples along each axis, odd, or only the number of planes. Default: as many as rise above the noise.",
    ),
    bead_diameter: float = optional(
        "--bead-diameter V",
        "Diameter of the beads, in µm, or in samples if no spacing is known; the size of the beads is removed "
        "from the result.",
        min=0,
        default=0.0,
    ),
    spacing: str | None = optional(
        "--spacing [DZ,]DY,DX", "Distance between samples along each axis, in µm. Default: the file's."
    ),
    channel: int | None = optional("--channel N", "Which channel, from 0.", min=0),
    axes: str | None = optional("--axes LETTERS", "Read the file's axes as these, for example ZYX or CZYX."),
) -> None:
    """Measure a point-spread function on beads or stars: average those that are not close to another one."""
    from deconv_cli.io import read_image
    from deconv_cli.io.metadata import header_number
    from deconv_cli.kernels.bead_psf import psf_from_beads
    from deconv_cli.measured_light import refusal_of
    from deconv_cli.report.reconstruction_record import finite_or_none
    from deconv_cli.tone_curve import limits_of

    answer.check(beads)
    image = read_image(beads, axes=axes)
    image = image if image.values.shape[0] == 1 else image.spanned_by(3)
    if len(image.values) > 1:
        raise UsageError(f"'{beads}' holds {len(image.values)} stacks; give one, or name its axes with --axes.")
    n_channels = image.values.shape[1]
    if channel is None and n_channels > 1:
        raise UsageError(f"'{beads}' holds {n_channels} channels; choose one with --channel N.")
    samples = image.values[0, checked_channel(channel or 0, n_channels)]
    steps = image.spacing if spacing is None else numbers_of_axes(spacing, "--spacing", (samples.ndim,), float)
    limits = limits_of(samples, image.dtype)
    found = psf_from_beads(
        samples,
        size=None if size is None else parse_size_of_stack(size, samples.ndim),
        bead_diameter=bead_diameter,
        spacing=steps,
        white=header_number(image.native_fields, "SATURATE") or (limits and limits[1]),
    )
    record = {
        "command": "kernel from-beads",
        "input": str(beads),
        "spacing": None if steps is None else list(steps),
        "bead_diameter": bead_diameter,
        "shape": list(found.psf.shape),
        "fwhm_samples": list(map(finite_or_none, found.widths)),
        "fwhm_scatter_samples": list(map(finite_or_none, found.scatter)),
        "beads": {
            "used": found.n_used,
            "too_close": found.census.n_crowded,
            "saturated": found.census.n_saturated,
            "saturated_from": found.full,
            "at_edge": found.census.n_at_edge,
            "unlike_the_others": found.n_unlike,
        },
        "background": found.background,
        "light_share": found.share,
        "outermost_plane": found.outermost,
    }
    n_axes = found.psf.ndim
    taps, rows, notes = found.psf.flip(tuple(range(n_axes))), _bead_rows(found, steps), image.notes
    if refusal_of(found.psf, n_axes) is not None:
        notes = (
            *notes,
            "other light lies around the points, so invert needs --clean-kernel with this kernel; or measure it again "
            "with --size, an odd number of about four times the FWHM for each axis",
        )
    answer.give(str(beads), record, rows, notes, taps=taps, n_axes=n_axes, spacing=steps)


def _bead_rows(found: BeadPsf, steps: tuple[float, ...] | None) -> Rows:
    from deconv_cli.kernels.bead_psf import describe_census

    left_out = list(filter(None, [describe_census(found.census)]))
    left_out += [f"{found.n_unlike} unlike the others"] if found.n_unlike else []
    rows = [("points", f"{found.n_used} averaged" + (f"; not used: {', '.join(left_out)}" if left_out else ""))]
    if found.census.n_saturated:
        rows.append(("saturated", f"samples of {found.full:g} or more"))
    unit = "samples" if steps is None else "µm"
    for i, name in enumerate("ZYX"[-found.psf.ndim :]):
        step = 1.0 if steps is None else steps[i]
        scatter = f" ± {found.scatter[i] * step:.2g}" if math.isfinite(found.scatter[i]) else ""
        width = f"{found.widths[i] * step:.4g}{scatter} {unit}"
        rows.append((f"FWHM {name}", width if math.isfinite(found.widths[i]) else "wider than the kernel"))
    return [
        *rows,
        ("size", f"{format_size(found.psf.shape)} samples, sum 1"),
        ("light", f"{format_percent(found.share)} of a point's light rises above the noise"),
        ("background", f"{found.background:.5g}, subtracted"),
    ]
