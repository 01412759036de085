"""The model, data and loss that the options of `deconv check-grad` and `deconv fisher` name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deconv_cli.commands.option_groups import optional
from deconv_cli.commands.user_code import ModelOptions
from deconv_cli.errors import UsageError
from deconv_cli.vocabulary import MAX_SEED

if TYPE_CHECKING:
    import torch
    from torch import nn

    from deconv_cli.gradients.inputs import Batch
    from deconv_cli.gradients.subject import Subject
    from deconv_cli.io.tensors import TensorFile
    from deconv_cli.models.model_files import ModelFile


_SYNTHETIC = "Synthetic data"


@dataclass(frozen=True)
class CaseOptions(ModelOptions):
    """Where a model, its data and its loss come from."""

    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="MODEL",
            help="The model: .safetensors, or a state dict or a whole module of torch.save. Without a file, --model "
            "initializes the weights.",
        ),
    ] = None
    model: str | None = optional(
        "--model CODE",
        "The model's class, a function that returns a model, or a model: file.py:Name or package.module:Name. "
        "This code is run; no code in the file MODEL is.",
    )
    data: Path | None = optional(
        "--data FILE", "Inputs of forward (.safetensors, .pt, .npz), and 'target' for the loss."
    )
    loss: str = optional(
        "--loss NAME|CODE",
        "cross-entropy, nll, mse, l1, smooth-l1, huber, bce, bce-with-logits; projection (the sum of the outputs with "
        "fixed random weights, or the model's own loss if it returns one); or file.py:function, called with the output "
        "and the target, or with the output alone.",
        default="projection",
    )
    batch_size: int = optional("--batch-size N", "Number of samples of --data to process at once.", min=1, default=16)
    input_shape: list[str] | None = optional(
        "--input-shape SHAPE",
        "Make a random input, for example 8,1,28,28; add dtype and range if needed: 8,32:int64:0..100. Give it once "
        "for each input of forward.",
        _SYNTHETIC,
    )
    target_shape: str | None = optional(
        "--target-shape SHAPE", "Make a random target, written in the same way.", _SYNTHETIC
    )
    seed: int = optional("--seed", "Seed of the data and of random layers.", _SYNTHETIC, min=0, max=MAX_SEED, default=0)


@dataclass(eq=False)
class Case:
    """A model with its inputs and its loss, and where they came from.

    Attributes:
        subject: the model, its inputs and its loss.
        loss_name: as typed.
        data: the data file; `None` for synthetic data.
        model: description of the model for the report.
        notes: assumptions, a sentence each.
    """

    subject: Subject
    loss_name: str
    data: TensorFile | None
    model: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the model."""
        return _dtype_of(self.subject.model)

    def describe(self) -> dict[str, Any]:
        """Describe the model, and shapes and types of the inputs, as JSON."""
        from deconv_cli.gradients.nested_tensors import tensors_in

        tensors = tensors_in((self.subject.arguments, self.subject.keywords))
        inputs = [f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}" for tensor in tensors]
        kind = "synthetic" if self.data is None else "given"
        return {"model": self.model, "data": {"kind": kind, "inputs": inputs, "seed": self.subject.seed}}

    def describe_loss(self) -> str:
        """Name the loss; runs the model once more to see whether it computes its own."""
        from deconv_cli.gradients.losses import own_loss

        is_own = self.loss_name == "projection" and own_loss(first_output(self.subject)) is not None
        return "the model's own" if is_own else self.loss_name


def open_case(
    options: CaseOptions, typed: frozenset[str], *, batch_axis: int | None = 0, is_training: bool = False
) -> Case:
    """Read the model and the data, and bind the loss and its target.

    Args:
        options: where they come from.
        typed: names of the options that were typed.
        batch_axis: the axis that counts the samples, or `None`.
        is_training: run layers such as dropout in training mode.

    Raises:
        UsageError: no such file or name, or options without an effect or that contradict a file.
        InputRefusedError: a file that is unsafe, damaged or does not fit.
    """
    from deconv_cli.gradients.inputs import InputSpec, draw_inputs
    from deconv_cli.gradients.subject import Subject

    _refuse_idle(typed, batch_axis)
    module, stored = _open_module(options)
    module.train(is_training)
    data, batch = _open_batch(options, module, batch_axis)
    target = batch.target
    if options.target_shape is not None:
        if target is not None:
            raise UsageError(
                f"--target-shape makes a target, but '{options.data}' holds one already; leave one of the two out."
            )
        spec = InputSpec.parse(options.target_shape, "--target-shape")
        (target,) = draw_inputs([spec], _dtype_of(module), options.seed + 1)
    subject = Subject(
        module,
        batch.arguments,
        batch.keywords,
        target,
        lambda output, _: output,
        options.seed,
        batch_axis,
        is_axis_given="batch_axis" in typed,
    )
    model = {
        "name": str(options.file or options.model),
        "kind": stored.kind if stored else "code",
        "sha256": stored.sha256 if stored else None,
        "class": type(module).__name__,
        "code": options.model,
    }
    case = Case(subject, options.loss, data, model)
    case.notes += stored.notes if stored is not None else ()
    _bind_loss(case, options)
    return case


def sorted_rows(data: TensorFile, start: int, stop: int | None, module: nn.Module, *, has_loss: bool = True) -> Batch:
    """Read rows of a data file in the precision of the model, up to the end by default.

    Without a loss, forward gets the target if it has an argument for it.

    Raises:
        InputRefusedError: the tensors do not agree on the number of samples, or hold none.
    """
    from deconv_cli.gradients.inputs import Batch

    tensors = data.rows(start, stop) if start and stop is not None else data.samples(stop)
    dtype = _dtype_of(module)
    converted = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
    return Batch.sort(converted, module, has_loss=has_loss)


def first_output(subject: Subject) -> Any:  # noqa: ANN401  whatever the model gives
    """Run the model once; a failure is a `UsageError`. The run records a graph, because forward may need gradients."""
    from deconv_cli.gradients.findings import first_line

    try:
        return subject.output()
    except Exception as error:
        raise UsageError(
            f"the model cannot be run on these inputs ({type(error).__name__}: “{first_line(error)}”); check "
            "--input-shape and --data."
        ) from error


def _open_module(options: CaseOptions) -> tuple[nn.Module, ModelFile | None]:
    """Read or build the model; returns it with the file it comes from."""
    from deconv_cli.gradients.subject import seed_everything
    from deconv_cli.models.model_files import build_model, load_named, read_model

    init = options.arguments()
    if options.file is None and options.model is None:
        raise UsageError(
            "there is no model: name a model file, or a class with --model file.py:Class; deconv check-grad also takes "
            "a training script with --run train.py."
        )
    if options.file is not None and options.file.suffix in (".py", ".ipynb"):
        raise UsageError(
            f"'{options.file}' is a script, not a model file: check a training script with deconv check-grad --run "
            f"{options.file}, or name its class with --model {options.file}:Class."
        )
    seed_everything(options.seed)  # weights that --model makes are the same each time
    named = load_named(options.model, "--model") if options.model else None
    stored = read_model(options.file, named=named) if options.file is not None else None
    if stored is not None and stored.module is not None:
        if init is not None:
            raise UsageError(
                f"--init gives arguments to --model, but '{options.file}' holds a whole model already; leave it out."
            )
        return stored.module, stored
    if named is None:
        raise UsageError(
            f"'{options.file}' holds weights without the code that uses them; name the class with --model "
            "file.py:Class."
        )
    return build_model(named, init, stored), stored


def _open_batch(options: CaseOptions, module: nn.Module, batch_axis: int | None) -> tuple[TensorFile | None, Batch]:
    """Read or draw the inputs; returns the data file, and the batch to check."""
    from deconv_cli.gradients.inputs import Batch, InputSpec, draw_inputs

    dtype = _dtype_of(module)
    if options.data is not None:
        from deconv_cli.io.tensors import open_data

        data = open_data(options.data)
        n_rows = options.batch_size if batch_axis == 0 else None
        has_loss = options.loss != "projection"
        return data, sorted_rows(data, 0, n_rows, module, has_loss=has_loss)
    if options.input_shape:
        specs = [InputSpec.parse(text, "--input-shape") for text in options.input_shape]
        return None, Batch(draw_inputs(specs, dtype, options.seed), {}, None)
    raise UsageError("there is no input for the model; add --data FILE, or its shape, as --input-shape 8,1,28,28.")


def _bind_loss(case: Case, options: CaseOptions) -> None:
    """Bind the loss, and draw a target if it needs one."""
    from deconv_cli.gradients.losses import NAMED_LOSSES, named_loss, takes_target, user_loss
    from deconv_cli.models.model_files import load_named

    subject, has_target = case.subject, case.subject.target is not None
    if ":" in options.loss:
        function = load_named(options.loss, "--loss").value
        try:
            subject.loss = user_loss(function, has_target=has_target)
        except UsageError as error:
            raise UsageError(f"{str(error).rstrip('.')}: --data or --target-shape.") from error
        uses_target = takes_target(function)
    else:
        subject.loss = named_loss(options.loss)
        uses_target = options.loss in NAMED_LOSSES
        if uses_target:
            _settle_target(case)
    if has_target and not uses_target:
        if options.target_shape is not None:
            raise UsageError(
                f"--target-shape makes a target, but --loss {options.loss} takes none; leave it out, or name a loss "
                "that takes a target."
            )
        case.notes.append(f"the target of --data is not used: --loss {options.loss} takes none")


def _settle_target(case: Case) -> None:
    """Draw a target of the output's shape, and note which axis holds classes."""
    import torch

    from deconv_cli.gradients.losses import OF_CLASSES, classes_are_last, draw_target, only_tensor

    subject = case.subject
    if subject.target is not None and case.loss_name not in OF_CLASSES:
        return
    output = only_tensor(first_output(subject), case.loss_name).detach()
    if subject.target is None:
        generator = torch.Generator().manual_seed(subject.seed + 1)
        subject.target = draw_target(case.loss_name, output, generator)
        case.notes.append("the target is synthetic")
    if case.loss_name in OF_CLASSES and classes_are_last(output, subject.target):
        case.notes.append(
            f"the output of shape {tuple(output.shape)} was read as (batch, steps, classes), because the target has "
            f"the shape {tuple(subject.target.shape)}"
        )


def _dtype_of(module: nn.Module) -> torch.dtype:
    import torch

    return next((p.dtype for p in module.parameters() if p.is_floating_point()), None) or torch.get_default_dtype()


def _refuse_idle(typed: frozenset[str], batch_axis: int | None) -> None:
    """Refuse, by `UsageError`, the first typed option that has no effect; `batch_axis` counts the samples."""
    if {"input_shape", "data"} <= typed:
        raise UsageError("--input-shape makes an input, but --data holds the inputs already; leave one of the two out.")
    if "batch_size" in typed and "data" not in typed:
        raise UsageError(
            "--batch-size is for --data, which is missing; leave it out, and name the number in --input-shape."
        )
    if "batch_size" in typed and batch_axis != 0:
        raise UsageError(
            "--batch-size counts samples along axis 0, but --batch-axis names another axis; leave --batch-size out."
        )
