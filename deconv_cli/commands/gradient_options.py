"""The options by which `deconv check-grad` and `deconv fisher` find a model, its data and its loss."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from deconv_cli.commands.model_options import AllowGlobalOption, InitOption, TrustFileOption
from deconv_cli.vocabulary import MAX_SEED

_SYNTHETIC = "Synthetic data"


@dataclass(frozen=True)
class CaseOptions:
    """Where a model, its data and its loss come from."""

    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[MODEL]",
            help="The model: .safetensors, a state dict or a whole module of torch.save, .pt2, TorchScript. Without a "
            "file the weights are as --model makes them.",
            show_default=False,
        ),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="CODE",
            help="The model's class, a function that returns a model, or a model: file.py:Name or package.module:Name. "
            "This code is run; nothing that MODEL carries is.",
        ),
    ] = None
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="Tensors for forward (.safetensors, .pt, .npz), and 'target' for the loss.",
            show_default=False,
        ),
    ] = None
    loss: Annotated[
        str,
        typer.Option(
            "--loss",
            metavar="NAME|CODE",
            help="cross-entropy, nll, mse, l1, smooth-l1, huber, bce, bce-with-logits; projection (a fixed random "
            "weight for every number of the output; a model that returns its loss keeps it); or file.py:function, "
            "called with the output and the target, or with the output alone.",
        ),
    ] = "projection"
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", help="How many samples of --data to take at once.", min=1)
    ] = 16
    input_shape: Annotated[
        list[str] | None,
        typer.Option(
            "--input-shape",
            metavar="SHAPE",
            help="Draw an input: 8,1,28,28, with dtype and range where they matter: 8,32:int64:0..100. Once for each "
            "input of forward.",
            show_default=False,
            rich_help_panel=_SYNTHETIC,
        ),
    ] = None
    target_shape: Annotated[
        str | None,
        typer.Option(
            "--target-shape",
            metavar="SHAPE",
            help="Draw a target, written in the same way.",
            rich_help_panel=_SYNTHETIC,
        ),
    ] = None
    seed: Annotated[
        int,
        typer.Option(
            "--seed", help="Seed of the data and of random layers.", min=0, max=MAX_SEED, rich_help_panel=_SYNTHETIC
        ),
    ] = 0
    init: InitOption = None
    allow_global: AllowGlobalOption = None
    trust_file: TrustFileOption = None
