"""`deconv check-grad`: find for every parameter whether its gradient arrives and whether it is right."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deconv_cli.commands import option_groups as options
from deconv_cli.commands.console import (
    print_answer,
    print_document,
    print_note,
    print_table,
    print_warning,
    printable,
    table_console,
)
from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.commands.expectations import Expectation, Outcome
from deconv_cli.commands.gradient_case import CaseOptions, open_case, refuse_idle
from deconv_cli.commands.option_groups import option, typed_options
from deconv_cli.commands.user_code import describe_warnings, running_user_code
from deconv_cli.errors import UsageError
from deconv_cli.settings import with_options
from deconv_cli.vocabulary import counted, package_version

if TYPE_CHECKING:
    from deconv_cli.gradients.findings import GradientReport

CONTEXT_SETTINGS = {"allow_extra_args": True}
EXAMPLE = (
    "Example: deconv check-grad sample_images/network.safetensors --model sample_images/network.py:Network "
    "--data sample_images/patches.safetensors --loss cross-entropy"
)

_PANEL = "What is checked"
_MANY = 40
"""Parameters beyond which those without a fault are only counted."""
_UNDECIDED = ("NOISY", "NOT CHECKED", "NONDIFFERENTIABLE")
_OF_OTHER_MODELS = (
    *("model", "data", "loss", "batch_size", "input_shape", "target_shape", "seed", "init", "mode"),
    "batch_axis",
)
"""Options that a script settles itself."""


class Mode(StrEnum):
    """The mode of layers such as dropout and batch normalization."""

    TRAIN = "train"
    EVAL = "eval"


def check_grad(
    invocation: typer.Context,
    case_options: CaseOptions,
    run: Annotated[
        Path | None,
        option(
            "--run SCRIPT",
            "Run a training script instead, and check its own model, data, loss and optimizers. Arguments after -- go "
            "to the script.",
        ),
    ] = None,
    step: Annotated[int, option("--step N", "With --run: start checking at the N-th loss.backward().", min=1)] = 1,
    expect: Annotated[
        list[str] | None,
        option(
            "--expect VERDICT:NAME",
            "Accept a finding: UNUSED:head.weight. NAME may contain *. It may also be a line (DETACHED:train.py:26) "
            "or model for the whole model (BATCH-LEAK:model).",
        ),
    ] = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
    mode: Annotated[Mode, option("--mode", "Mode of dropout and batch normalization.", _PANEL)] = Mode.TRAIN,
    batch_axis: Annotated[
        str,
        option(
            "--batch-axis N|none|auto",
            "The axis of the samples; auto is the first, unless it looks like time.",
            _PANEL,
        ),
    ] = "auto",
    budget: Annotated[float, option("--budget SECONDS", "Time for finite differences.", _PANEL, min=0.0)] = 60.0,
) -> None:
    """Find out why a model does not learn: which gradients are missing or wrong, and which line is at fault."""
    started = time.perf_counter()
    typed = typed_options(invocation) - ({"batch_axis"} if batch_axis == "auto" else set())
    axis = _parse_axis(batch_axis)
    _refuse_idle_for_script(typed, invocation.args)
    refuse_idle(typed, batch_axis=axis)
    expectations = [Expectation.parse(text) for text in expect or []]
    with running_user_code(is_silent=quiet or as_json) as (show, warned):
        if run is not None:
            words = [*([os.fspath(case_options.file)] if case_options.file else []), *invocation.args]
            report, header = _check_script(run, words, step, budget, show)
            notes: list[str] = []
        else:
            show("reading the model")
            case = open_case(case_options, typed, batch_axis=axis, is_training=mode is Mode.TRAIN)
            from deconv_cli.gradients.checker import check_subject

            report = check_subject(case.subject, budget=budget, on_progress=show)
            header = {"mode": mode.value, "loss_name": case.describe_loss()} | case.describe()
            notes = case.notes
    outcome = Outcome.of(report, expectations)
    from deconv_cli.report.gradient_record import describe_gradients

    record: dict[str, Any] = {
        "schema": 1,
        "command": "check-grad",
        "versions": {"deconv": package_version("deconv-cli"), "torch": package_version("torch")},
        **header,
        **describe_gradients(report, outcome.expected),
    }
    notes = [*notes, *record["notes"]]
    if record["data"]["kind"] == "synthetic":
        notes.append("the data are synthetic: the verdicts hold for these data, and ZERO may change with yours")
    if outcome.unmet:
        notes.append(f"expected, but not found: {', '.join(map(str, outcome.unmet))}")
    record["notes"] = [*notes, *describe_warnings(warned)]
    record |= {"exit_code": int(outcome.exit_code), "conclusion": outcome.conclusion}
    record["time_s"] = time.perf_counter() - started
    if as_json:
        print_document(record)
    elif quiet:
        print_answer(record["conclusion"])
    else:
        _print_findings(record, verbose=verbose)
    if not quiet:
        for note in record["notes"]:
            print_note(note)
        for sentence in record["not_checked"]:
            print_warning(f"not checked: {with_options(sentence)}.")
    if outcome.exit_code is not ExitCode.SUCCESS:
        raise typer.Exit(outcome.exit_code)


def _parse_axis(text: str) -> int | None:
    if text in ("none", "auto"):
        return None if text == "none" else 0
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"--batch-axis must be a whole number, none or auto, but is '{text}'.")
    return int(text)


def _refuse_idle_for_script(typed: frozenset[str], arguments: list[str]) -> None:
    """Refuse, by `UsageError`, options that a script settles itself, and options that need a script."""
    if "run" not in typed:
        if arguments:
            raise UsageError(
                f"deconv check-grad takes one model file, but '{arguments[0]}' was given too; leave it out."
            )
        if "step" in typed:
            raise UsageError("--step counts the backward passes of a script, but there is no --run; leave it out.")
        return
    for name in _OF_OTHER_MODELS:
        if name in typed:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} does not go with --run, where the script decides it; leave it out.")


def _check_script(
    path: Path, arguments: list[str], step: int, budget: float, show: Callable[[str], None]
) -> tuple[GradientReport, dict[str, Any]]:
    """Run a script and check it; returns the report, and a description of model, loss and data."""
    from deconv_cli.gradients.training.script import check_script

    if not path.is_file():
        raise UsageError(f"--run must name a Python script, but there is no file '{path}'.")
    report = check_script(path, arguments, step=step, budget=budget, on_progress=show)
    return report, {
        "model": {"name": str(path), "kind": "script", "sha256": None, "class": None, "code": str(path)},
        "mode": "the script's own",
        "loss_name": f"backward pass {step}",
        "data": {"kind": "the script's own", "inputs": [], "seed": None},
    }


def _print_findings(record: dict[str, Any], *, verbose: bool) -> None:
    """Print a table of parameters, then every fault with its line and reason, on stdout."""
    from rich.text import Text

    from deconv_cli.vocabulary import name_some

    console = table_console(stderr=False)

    def line(text: str, style: str = "") -> None:
        console.print(Text(printable(text), style=style), soft_wrap=True)

    parameters = record["parameters"]
    shown = parameters
    if len(parameters) > _MANY and not verbose:
        shown = [p for p in parameters if p["is_fault"] or p["verdict"] in _UNDECIDED][:_MANY]
    loss = "not finite" if record["loss"] is None else f"{record['loss']:.4g}"
    line(record["summary"], "bold")
    line(
        f"{record['model']['name']}: {counted(len(parameters), 'parameter')}, loss {loss} ({record['loss_name']}), "
        f"{record['data']['kind']} data, {record['mode']} mode"
    )
    if shown:
        headings = ("verdict", "parameter", "shape", "‖gradient‖", "ratio", "against finite differences")
        print_table("", map(_row, shown), headings, to_stdout=True)
        line("ratio: ‖gradient‖ / ‖parameter‖")
    if len(shown) < len(parameters):
        line(f"and {_count(p for p in parameters if p not in shown)} (--verbose lists them)")
    details = {p["name"]: p["detail"] for p in parameters if p["detail"]}
    printed = [
        (fault, name_some(fault["parameters"]), next((details[n] for n in fault["parameters"] if n in details), None))
        for fault in (*record["faults"], *record["remarks"])
    ]
    faulty = {fault["verdict"] for fault in record["faults"]} - {"WRONG"}
    printed += [(found, "the model", found["detail"]) for found in record["general"] if found["verdict"] not in faulty]
    for found, names, detail in printed:
        console.print()
        line(f"{found['verdict']}: {names}", "bold")
        for sentence in _explanation(found, detail):
            line(sentence)
    print_answer(record["conclusion"])


def _count(findings: Iterable[dict[str, Any]]) -> str:
    """Count findings by verdict: `14 more that are OK, 36 NOT REACHED`."""
    counts = Counter(finding["verdict"] for finding in findings)
    healthy = [f"{counts.pop('OK')} more that are OK"] if "OK" in counts else []
    return ", ".join([*healthy, *(f"{n} {verdict}" for verdict, n in counts.items())])


def _explanation(found: dict[str, Any], detail: str | None) -> list[str]:
    """Write what is at fault, why, and what to write instead."""
    lines = [f"  {detail}"] if detail else []
    for cause in found["causes"]:
        source = f"    {cause['source']}" if cause["source"] else ""
        instead = cause["instead"].replace("accept this finding", f"accept it with --expect {found['verdict']}:NAME")
        lines.append(f"  at       {_where(cause)}  {cause['operation']}{source}")
        lines.append(f"  why      {cause['why']}")
        lines.append(f"  instead  {instead}")
    return lines


def _row(finding: dict[str, Any]) -> list[str]:
    comparison = finding["comparison"]
    compared = ""
    if comparison is not None:
        resolution = comparison["resolution"]
        if finding["verdict"] in ("OK", "VANISHING", "EXPLODING") and resolution is not None:
            compared = f"agrees, to {resolution:.1g}"
        elif comparison["autograd"] is not None and comparison["numeric"] is not None:
            bar = comparison["error_bar"] or 0.0
            compared = f"{comparison['autograd']:.5g}, numeric {comparison['numeric']:.5g} ± {bar:.0g}"
    verdict = f"{finding['verdict']} (expected)" if finding["expected"] else finding["verdict"]
    shape = "×".join(str(size) for size in finding["shape"]) or "scalar"
    norm, ratio = ("" if value is None else f"{value:.3g}" for value in (finding["gradient_norm"], finding["ratio"]))
    return [verdict, finding["name"], shape, norm, ratio, compared]


def _where(cause: dict[str, Any]) -> str:
    if cause["file"] and cause["line"]:
        path = Path(cause["file"])
        if path.is_relative_to(Path.cwd()):
            path = path.relative_to(Path.cwd())
        return f"{path}:{cause['line']}"
    return f"module '{cause['module']}'" if cause["module"] else "the model"
