"""`deconv kernel make` and `deconv kernel extract`: a kernel by a formula, or from a layer of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deconv_cli.commands.console import print_document, print_table
from deconv_cli.commands.kernel_output import (
    AnswerOptions,
    OutputFile,
    check_kernel_output,
    parse_numbers,
    print_kernel,
    without_paths,
    write_kernel,
)
from deconv_cli.commands.option_groups import option
from deconv_cli.commands.user_code import ModelOptions, open_module
from deconv_cli.errors import UsageError
from deconv_cli.parts import KERNEL_SOURCES
from deconv_cli.vocabulary import format_size

if TYPE_CHECKING:
    from deconv_cli.models.layers import ModelLayer

ACCURATE = 1e-3
"""Error of the transform below which there is no note."""

MAKE_EXAMPLE = "Example: deconv kernel make 'disk:4*motion:9@30' -o blur.npy --show"
EXTRACT_EXAMPLE = "Example: deconv kernel extract sample_images/pnet.pt --layer conv1 -o conv1.safetensors"


def make(
    words: Annotated[
        str,
        typer.Argument(
            metavar="FORMULA",
            help=f"A formula ({', '.join(KERNEL_SOURCES)}) with its numbers, as disk:5.2, or a product of several, one "
            "blur after another, as 'disk:4*motion:9@30'; a factor shift:DOWN@RIGHT moves by parts of a pixel. Lengths "
            "are in pixels, or in nm, um or mm, as disk:0.6um.",
        ),
    ],
    printed: AnswerOptions,
    spacing: Annotated[
        str | None,
        option("--spacing [DZ,]DY,DX", "Distance of samples along each axis in µm, for lengths in nm, um or mm."),
    ] = None,
    signal: Annotated[
        bool,
        option("--signal", "Make the kernel of a signal, with one axis: the blur of a line across the last axis."),
    ] = False,
    size: Annotated[
        str | None,
        option(
            "--size N|[D,]H,W",
            "Taps along each axis, odd: more of them hold more of the tails of airy and moffat. Default: as many as "
            "matter, and a part of long tails.",
        ),
    ] = None,
    output: OutputFile = None,
) -> None:
    """Make a kernel by a formula, of sum 1."""
    from deconv_cli.kernels.sources.formula import has_units, make_kernel, read_formula
    from deconv_cli.kernels.sources.kernel_source import transform_error

    check_kernel_output(output, Path.cwd(), force=printed.force)
    steps = None if spacing is None else parse_numbers(spacing, "--spacing", (2, 3), float)
    if steps is None and has_units(words):
        raise UsageError("lengths in nm, um or mm need the distances of the samples, as --spacing 0.2,0.1,0.1 in µm.")
    if steps is not None and not has_units(words):
        raise UsageError("--spacing is for lengths in nm, um or mm, but the formula has none; leave it out.")
    dimensions = 1 if signal else None
    wanted = None if size is None else parse_numbers(size, "--size", (1, 2, 3), int)
    taps = make_kernel(
        words, spacing=steps, dimensions=dimensions, size=wanted[0] if wanted and len(wanted) == 1 else wanted
    )
    error = transform_error(read_formula(words, steps, dimensions), taps.flip(tuple(range(taps.ndim))))
    record = {
        "schema": 1,
        "command": "kernel make",
        "kernel": words,
        "spacing": None if steps is None else list(steps),
        "shape": list(taps.shape),
        "sum": float(taps.sum()),
        "largest": float(taps.max()),
        "transform_error": error,
        "output": None if output is None else str(output),
    }
    write_kernel(output, taps, record)
    shape = format_size(taps.shape)
    rows = [
        ("taps", f"{shape}, sum {record['sum']:.6g}, largest {record['largest']:.4g}"),
        ("transform", f"off by {error:.2g} at most, up to half of Nyquist's frequency"),
    ]
    note = (
        f"the tails end at the edge of {shape} taps, which makes the transform wrong by {error:.2g}; a larger --size "
        "holds more of them"
    )
    print_kernel(printed, words, rows, [note] if error > ACCURATE else [], taps, record, output)


def extract(
    model_file: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="The model: .safetensors, a state dict or a whole module of torch.save, .pt2, TorchScript.",
        ),
    ],
    options: ModelOptions,
    printed: AnswerOptions,
    layer: Annotated[str | None, option("--layer NAME", "Which layer. Without it the layers are listed.")] = None,
    output: Annotated[
        Path | None,
        option(
            "--output -o FILE.safetensors",
            "Write the layer's weight and bias, with its geometry in the record; --kernel takes the file.",
        ),
    ] = None,
) -> None:
    """List the convolutions of a model, or take one out of it; nothing in the file is run."""
    from deconv_cli.io.atomic import check_output_path
    from deconv_cli.models.layers import find_layer, list_layers
    from deconv_cli.saved_kernels import save_layer

    if output is not None:
        check_output_path(output, model_file, force=printed.force)
    stored, module = open_module(model_file, options)
    layers = list_layers(stored, module)
    record: dict[str, Any] = {
        "schema": 1,
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
            "the file holds weights alone: it does not say stride, padding, dilation and groups; name the class of the "
            "model here with --model to record them, or give --stride, --padding and the others to forward and invert"
        )
    rows = [("layer", found.name), *_layer_rows(found)]
    print_kernel(printed, str(model_file), rows, notes, found.weight, record, output)


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
