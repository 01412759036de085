"""`deconv fisher`: the diagonal of the Fisher matrix of a model, over all of its data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deconv_cli.commands import option_groups as options
from deconv_cli.commands.console import print_answer, print_document, print_note
from deconv_cli.commands.gradient_case import Case, CaseOptions, first_output, open_case, sorted_rows
from deconv_cli.commands.option_groups import option, typed_options
from deconv_cli.commands.user_code import describe_warnings, running_user_code
from deconv_cli.errors import UsageError
from deconv_cli.vocabulary import SCHEMA

if TYPE_CHECKING:
    from deconv_cli.gradients.inputs import Batch

EXAMPLE = (
    "Example: deconv fisher sample_images/network.safetensors --model sample_images/network.py:Network "
    "--data sample_images/patches.safetensors --loss cross-entropy -o fisher.safetensors"
)

FisherKind = Literal["empirical", "sampled", "exact", "ggn"]
"""Which diagonal is written."""


def fisher(
    invocation: typer.Context,
    output: Annotated[Path, option("--output -o FILE", "Where to write the matrix (.safetensors).")],
    case_options: CaseOptions,
    kind: Annotated[
        FisherKind,
        option(
            "--kind",
            "empirical: squared gradients for the given targets; sampled: for targets drawn from the model; exact: "
            "for all classes, weighted by probability; ggn: the generalized Gauss-Newton matrix.",
        ),
    ] = "empirical",
    draws: Annotated[int, option("--draws N", "With --kind sampled: targets to draw for each sample.", min=1)] = 1,
    force: options.ForceOption = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Average squared per-sample gradients over all data: the diagonal of a Fisher matrix, in evaluation mode."""
    from deconv_cli.io.atomic import check_output_path

    typed = typed_options(invocation)
    if "draws" in typed and kind != "sampled":
        raise UsageError(
            f"--draws is for --kind sampled, but the kind is {kind}; leave it out, or draw targets with --kind sampled."
        )
    if output.suffix != ".safetensors":
        raise UsageError(f"--output must end in .safetensors, but is '{output}'.")
    check_output_path(output, case_options.data or case_options.file or output.parent, force=force)
    with running_user_code(is_silent=quiet or as_json) as (show, warned):
        show("reading the model")
        case = open_case(case_options, typed)
        record = _write(output, case, kind, draws, case_options.batch_size, show)
    record["notes"] = [*case.notes, *describe_warnings(warned)]
    if as_json:
        print_document(record)
    else:
        print_answer(str(output) if quiet else _describe(record))
    for note in [] if quiet else record["notes"]:
        print_note(note)


def _write(
    path: Path, case: Case, kind: FisherKind, n_draws: int, batch_size: int, show: Callable[[str], None]
) -> dict[str, Any]:
    """Average over all samples, and write the diagonal with the names of the state dict."""
    from deconv_cli.gradients.findings import first_line
    from deconv_cli.gradients.fisher_diagonal import diagonal_fisher, refuse_projection
    from deconv_cli.io.codecs.tensor_codecs import write_tensors
    from deconv_cli.report.gradient_record import describe_fisher

    subject = case.subject
    n_samples = case.data.n_samples if case.data else 0
    try:
        with subject.evaluating():
            if case.loss_name == "projection":
                refuse_projection(first_output(subject))
            found = diagonal_fisher(
                subject.model,
                _batches(case, batch_size),
                case.loss_name,
                subject.loss,
                kind=kind,
                n_draws=n_draws,
                seed=subject.seed,
                on_progress=lambda n: show(f"Fisher matrix: {n} of {n_samples or n} samples"),
            )
    except RuntimeError as error:
        raise UsageError(
            f"'{path}' was not written: torch cannot differentiate the model sample by sample (“{first_line(error)}”)."
        ) from error
    record = {
        "schema": SCHEMA,
        "command": "fisher",
        **describe_fisher(found),
        "output": str(path),
        "loss_name": case.loss_name,
        **case.describe(),
    }
    write_tensors(path, {name: tensor.to(case.dtype) for name, tensor in found.diagonal.items()}, record)
    return record


def _batches(case: Case, batch_size: int) -> Iterator[Batch]:
    from deconv_cli.gradients.inputs import Batch

    subject, data = case.subject, case.data
    if data is None:
        yield Batch(subject.arguments, subject.keywords, subject.target)
        return
    for start in range(0, data.n_samples, batch_size):
        yield sorted_rows(data, start, start + batch_size, subject.model)


def _describe(record: dict[str, Any]) -> str:
    share = record["batch_mean_squared_trace"] / record["trace"] if record["trace"] else 0.0
    return (
        f"{record['kind']} Fisher diagonal, {record['n_samples']} samples, likelihood {record['likelihood']}: trace "
        f"{record['trace']:.4g}, in {record['output']}; squaring the mean gradient of a batch of "
        f"{record['batch_size']} would give {record['batch_mean_squared_trace']:.4g} ({share:.2g} times that)"
    )
