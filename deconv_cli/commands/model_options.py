"""The options by which a model file is opened: the class that it needs, and what of it may be trusted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deconv_cli.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from deconv_cli.models.model_files import ModelFile

MODEL_FILES = "Model files"

InitOption = Annotated[
    str | None,
    typer.Option(
        "--init",
        metavar="JSON",
        help='Arguments of the class that --model names: {"hidden": 64}, or a list.',
        rich_help_panel=MODEL_FILES,
    ),
]
AllowGlobalOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-global",
        metavar="NAME",
        help="Let a pickle use this class besides those of torch.nn and --model: package.module.Name.",
        show_default=False,
        rich_help_panel=MODEL_FILES,
    ),
]
TrustFileOption = Annotated[
    str | None,
    typer.Option(
        "--trust-file",
        metavar="SHA256",
        help="Run the TorchScript or .pt2 file with this fingerprint.",
        rich_help_panel=MODEL_FILES,
    ),
]


@dataclass(frozen=True)
class ModelOptions:
    """How a model file is opened."""

    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="CODE",
            help="The model's class, for a file of weights alone: file.py:Name or package.module:Name. This code is "
            "run; nothing that MODEL carries is.",
            rich_help_panel=MODEL_FILES,
        ),
    ] = None
    init: InitOption = None
    allow_global: AllowGlobalOption = None
    trust_file: TrustFileOption = None


def open_module(path: Path, options: ModelOptions) -> tuple[ModelFile, nn.Module | None]:
    """Read a model file, and build the model where its class was named.

    Raises:
        UsageError: no such file or name, or arguments without a class.
        InputRefusedError: a file that is unsafe, damaged or does not fit.
    """
    from deconv_cli.commands.user_code import running_user_code
    from deconv_cli.saved_kernels import open_model

    if options.init is not None and options.model is None:
        raise UsageError(
            "--init gives the arguments of --model, which is missing; name the class with --model file.py:Class."
        )
    with running_user_code(is_silent=True):
        return open_model(
            path,
            model=options.model,
            init=parse_init(options.init),
            allowed_globals=tuple(options.allow_global or ()),
            trusted_sha256=options.trust_file,
        )


def parse_init(text: str | None) -> dict[str, Any] | list[Any] | None:
    """Read the arguments of a model's class.

    Raises:
        UsageError: neither an object nor a list of JSON.
    """
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--init must be JSON such as {{\"hidden\": 64}}, but is '{text[:80]}'.") from error
    if not isinstance(found, dict | list):
        raise UsageError(f"--init must be a JSON object or a list, but is '{text[:80]}'.")
    return found
