"""Find the options that a person typed, and refuse those of `check-grad` and `fisher` that have no effect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from deconv_cli.errors import UsageError

if TYPE_CHECKING:
    from deconv_cli.models.model_files import ModelFile


def was_typed(invocation: typer.Context, name: str) -> bool:
    """Return whether a parameter of a command was typed, even with its default."""
    source = invocation.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def typed_options(invocation: typer.Context) -> frozenset[str]:
    """List the typed parameters of a command."""
    return frozenset(name for name in invocation.params if was_typed(invocation, name))


def refuse_idle(typed: frozenset[str], *, batch_axis: int | None) -> None:
    """Refuse, by `UsageError`, the first typed option that has no effect; `batch_axis` counts the samples."""
    idle = {
        "--input-shape draws an input, but --data holds the inputs; leave one of the two out.": (
            {"input_shape", "data"} <= typed
        ),
        "--init gives the arguments of --model, which is missing; name the class with --model file.py:Class.": (
            _lacks(typed, "init", "model")
        ),
        "--batch-size says how many samples of --data to take, but there is no --data; say how many samples to draw "
        "with --input-shape.": _lacks(typed, "batch_size", "data"),
        "--batch-size counts samples along axis 0, but --batch-axis names another axis; leave --batch-size out.": (
            "batch_size" in typed and batch_axis != 0
        ),
        "--trust-file is for TorchScript and .pt2 files, but no file is named; name it, or leave --trust-file out.": (
            _lacks(typed, "trust_file", "file")
        ),
        "--allow-global is for pickled files, but no file is named; name it, or leave --allow-global out.": (
            _lacks(typed, "allow_global", "file")
        ),
    }
    _refuse_first(idle)


def refuse_idle_for_file(typed: frozenset[str], path: Path, stored: ModelFile) -> None:
    """Refuse, by `UsageError`, the first typed option that has no effect on this kind of model file."""
    from deconv_cli.models.model_files import ModelFormat

    kind = stored.kind
    idle = {
        f"--trust-file is for TorchScript and .pt2, but '{path}' is a {kind} file, of which nothing is run; leave it "
        "out.": "trust_file" in typed and not kind.is_program,
        f"--allow-global is for pickled files, but '{path}' is a {kind} file; leave it out.": (
            "allow_global" in typed and kind is not ModelFormat.PICKLE
        ),
        f"--mode cannot change an exported program such as '{path}', which keeps the mode it was exported in; leave it "
        "out, or export the model in that mode.": "mode" in typed and kind is ModelFormat.EXPORTED,
        f"--model names what is computed, but '{path}' is a {kind} file, which carries that itself; leave it out.": (
            "model" in typed and kind.is_program
        ),
        f"--init makes a model of --model, but '{path}' holds a whole model already; leave it out.": (
            "init" in typed and stored.state is None
        ),
    }
    _refuse_first(idle)


def _lacks(typed: frozenset[str], option: str, partner: str) -> bool:
    return option in typed and partner not in typed


def _refuse_first(idle: dict[str, bool]) -> None:
    for sentence, is_idle in idle.items():
        if is_idle:
            raise UsageError(sentence)
