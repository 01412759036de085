"""`deconv check-grad`: find for every parameter whether its gradient arrives and whether it is right."""

from __future__ import annotations

import os
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from deconv_cli.commands import option_groups as options
from deconv_cli.commands.cli_messages import with_options
from deconv_cli.commands.console import print_answer, print_document, print_note, print_warning
from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.commands.expectations import Expectation, Outcome
from deconv_cli.commands.gradient_case import Case, open_case
from deconv_cli.commands.gradient_options import CaseOptions
from deconv_cli.commands.gradient_table import print_findings
from deconv_cli.commands.option_checks import refuse_idle, typed_options
from deconv_cli.commands.script_case import check_script_at_prompt, refuse_idle_for_script
from deconv_cli.commands.user_code import describe_warnings, running_user_code
from deconv_cli.errors import UsageError
from deconv_cli.vocabulary import package_version

EXAMPLE = (
    "Example: deconv check-grad sample_images/network.safetensors --model sample_images/network.py:Network "
    "--data sample_images/patches.safetensors --loss cross-entropy"
)

_PANEL = "What is checked"


class Wrt(StrEnum):
    """What gradients are taken by."""

    PARAMETERS = "parameters"
    INPUTS = "inputs"


class Mode(StrEnum):
    """In which mode layers such as dropout and batch normalization run."""

    TRAIN = "train"
    EVAL = "eval"


def check_grad(
    invocation: typer.Context,
    case_options: CaseOptions,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run",
            metavar="SCRIPT",
            help="Run a training script instead, and check its own model, data, loss and optimizers. What follows -- "
            "goes to the script.",
            show_default=False,
        ),
    ] = None,
    step: Annotated[
        int, typer.Option("--step", metavar="N", help="With --run: from which loss.backward() on to check.", min=1)
    ] = 1,
    expect: Annotated[
        list[str] | None,
        typer.Option(
            "--expect",
            metavar="VERDICT:NAME",
            help="Accept a finding: UNUSED:head.weight. NAME may hold *, be a line, DETACHED:train.py:26, or model for "
            "the whole, BATCH-LEAK:model.",
            show_default=False,
        ),
    ] = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
    mode: Annotated[
        Mode, typer.Option("--mode", help="Mode of dropout and batch normalization.", rich_help_panel=_PANEL)
    ] = Mode.TRAIN,
    batch_axis: Annotated[
        str,
        typer.Option(
            "--batch-axis",
            metavar="N|none|auto",
            help="Which axis counts the samples; auto is the first, unless it looks like time.",
            rich_help_panel=_PANEL,
        ),
    ] = "auto",
    wrt: Annotated[
        Wrt,
        typer.Option("--wrt", help="Check the gradients by these.", rich_help_panel=_PANEL),
    ] = Wrt.PARAMETERS,
    budget: Annotated[
        float,
        typer.Option(
            "--budget", metavar="SECONDS", help="Time for finite differences.", min=0.0, rich_help_panel=_PANEL
        ),
    ] = 60.0,
    second_order: Annotated[
        bool, typer.Option("--second-order", help="Compare second derivatives too.", rich_help_panel=_PANEL)
    ] = False,
) -> None:
    """Find out why a model does not learn: does each gradient arrive, is it right, and which line is at fault."""
    started = time.perf_counter()
    typed = typed_options(invocation) - ({"batch_axis"} if batch_axis == "auto" else set())
    axis = _parse_axis(batch_axis)
    refuse_idle_for_script(typed, invocation.args)
    refuse_idle(typed, batch_axis=axis)
    expectations = [Expectation.parse(text) for text in expect or []]
    with running_user_code(is_silent=quiet or as_json) as (show, warned):
        if run is not None:
            words = [*([os.fspath(case_options.file)] if case_options.file else []), *invocation.args]
            report, header = check_script_at_prompt(run, words, step=step, budget=budget, show=show)
            notes: list[str] = []
        else:
            show("reading the model")
            case = open_case(case_options, typed, batch_axis=axis, is_training=mode is Mode.TRAIN)
            from deconv_cli.gradients.checker import check_subject
            from deconv_cli.gradients.inputs import with_inputs_as_weights

            subject = with_inputs_as_weights(case.subject) if wrt is Wrt.INPUTS else case.subject
            report = check_subject(subject, budget=budget, second_order=second_order, on_progress=show)
            header, notes = _describe_case(case, mode), case.notes
    outcome = Outcome.of(report, expectations)
    from deconv_cli.report.gradient_record import describe_gradients

    record = _header() | header | describe_gradients(report, outcome.expected)
    record["notes"] = [*notes, *record["notes"], *_closing_notes(record, outcome), *describe_warnings(warned)]
    record |= {"exit_code": int(outcome.exit_code), "conclusion": outcome.conclusion}
    record["time_s"] = time.perf_counter() - started
    _announce(record, as_json=as_json, quiet=quiet, verbose=verbose)
    if outcome.exit_code is not ExitCode.SUCCESS:
        raise typer.Exit(outcome.exit_code)


def _parse_axis(text: str) -> int | None:
    if text in ("none", "auto"):
        return None if text == "none" else 0
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"--batch-axis must be a whole number, none or auto, but is '{text}'.")
    return int(text)


def _header() -> dict[str, Any]:
    return {
        "schema": 1,
        "command": "check-grad",
        "versions": {"deconv": package_version("deconv-cli"), "torch": package_version("torch")},
    }


def _describe_case(case: Case, mode: Mode) -> dict[str, Any]:
    from deconv_cli.models.model_files import ModelFormat

    return {
        "model": case.model,
        "mode": "exported" if case.model["kind"] == ModelFormat.EXPORTED else mode.value,
        "loss_name": case.describe_loss(),
        "data": {"kind": case.data_kind, "inputs": case.inputs, "seed": case.subject.seed},
    }


def _closing_notes(record: dict[str, Any], outcome: Outcome) -> list[str]:
    notes = []
    if record["data"]["kind"] == "synthetic":
        notes.append("the data are synthetic: a verdict holds for them, and ZERO may be different for yours")
    if outcome.unmet:
        notes.append(f"not found, though expected: {', '.join(map(str, outcome.unmet))}")
    return notes


def _announce(record: dict[str, Any], *, as_json: bool, quiet: bool, verbose: bool) -> None:
    if as_json:
        print_document(record)
    elif quiet:
        print_answer(record["conclusion"])
    else:
        print_findings(record, verbose=verbose)
    if not quiet:
        for note in record["notes"]:
            print_note(note)
        for sentence in record["not_checked"]:
            print_warning(f"not checked: {with_options(sentence)}.")
