"""`deconv kernel extract`: take a convolution, with all its geometry, out of a model file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deconv_cli.commands.console import print_document, print_note, print_table
from deconv_cli.commands.kernel_output import AnswerOptions, print_kernel, without_paths
from deconv_cli.commands.model_options import ModelOptions, open_module
from deconv_cli.errors import UsageError
from deconv_cli.vocabulary import format_size

if TYPE_CHECKING:
    from deconv_cli.models.layers import ModelLayer
    from deconv_cli.models.model_files import ModelFile

EXAMPLE = "Example: deconv kernel extract sample_images/pnet.pt --layer conv1 -o conv1.safetensors"


def extract(
    model_file: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="The model: .safetensors, a state dict or a whole module of torch.save, .pt2, TorchScript.",
            show_default=False,
        ),
    ],
    options: ModelOptions,
    printed: AnswerOptions,
    layer: Annotated[
        str | None,
        typer.Option("--layer", metavar="NAME", help="Which layer. Without it the layers are listed."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.safetensors",
            help="Write the layer's weight and bias, with its geometry in the record; --kernel takes the file.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """List the convolutions of a model, or take one out of it; nothing that the file carries is run."""
    from deconv_cli.io.atomic import check_output_path
    from deconv_cli.models.layers import find_layer, list_layers
    from deconv_cli.saved_kernels import save_layer

    if output is not None:
        if output.suffix != ".safetensors":
            raise UsageError(f"a layer has a bias and a geometry, which .safetensors alone holds; not '{output}'.")
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
        _list(model_file, layers, record, as_json=printed.as_json)
        return
    found = find_layer(stored, layers, layer)
    record |= {"layer": found.describe(), "output": None if output is None else str(output)}
    if output is not None:
        save_layer(found, output, record=without_paths(record), force=printed.force)
    if not printed.quiet:
        print_table(str(model_file), [("layer", found.name), *_rows(found)])
        for note in _notes(stored, found):
            print_note(note)
    print_kernel(found.weight, record, output, printed)


def _list(path: Path, layers: list[ModelLayer], record: dict[str, Any], *, as_json: bool) -> None:
    """Print the layers, which are the answer here."""
    if as_json:
        print_document(record | {"layers": [layer.describe() for layer in layers]})
        return
    print_table(
        str(path), [(layer.name, ", ".join(text for _, text in _rows(layer))) for layer in layers], to_stdout=True
    )


def _rows(layer: ModelLayer) -> list[tuple[str, str]]:
    shape = format_size(layer.weight.shape)
    rows = [("kind", layer.kind or "weights alone"), ("taps", shape + ("" if layer.bias is None else ", with a bias"))]
    settings = [f"{name} {_typed(value)}" for name, value in layer.geometry.items() if _matters(name, value)]
    return rows + ([("geometry", ", ".join(settings))] if settings else [])


def _matters(name: str, value: object) -> bool:
    """Return whether a setting is not what it is of a plain convolution."""
    plain = {"padding_mode": "zeros", "transposed": False, "padding": 0, "output_padding": 0}.get(name, 1)
    return any(each != plain for each in (value if isinstance(value, list) else [value]))


def _typed(value: object) -> str:
    if isinstance(value, list):
        return str(value[0]) if len(set(value)) == 1 else ",".join(map(str, value))
    return str(value)


def _notes(stored: ModelFile, layer: ModelLayer) -> tuple[str, ...]:
    if layer.geometry:
        return stored.notes
    return (
        *stored.notes,
        "the file holds weights alone: it does not say stride, padding, dilation and groups; name the class of the "
        "model here with --model to record them, or give --stride, --padding and the others to forward and invert",
    )
