"""`deconv check-grad`: find for every parameter whether its gradient arrives and whether it is right."""

from __future__ import annotations

import fnmatch
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
from deconv_cli.commands.gradient_case import CaseOptions, open_case
from deconv_cli.commands.option_groups import option, typed_options
from deconv_cli.commands.user_code import describe_warnings, running_user_code
from deconv_cli.errors import UsageError
from deconv_cli.prompt_sentences import with_options
from deconv_cli.vocabulary import SCHEMA, counted, nearest_name, option_name, package_version

if TYPE_CHECKING:
    from deconv_cli.gradients.findings import Fault, Finding, GradientReport

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
    step: Annotated[
        int,
        option(
            "--step N", "With --run: start checking at the N-th loss.backward(), such as one after a warm-up.", min=1
        ),
    ] = 1,
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
    mode: Annotated[
        Literal["train", "eval"], option("--mode", "Mode of dropout and batch normalization.", _PANEL)
    ] = "train",
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
    expectations = [Expectation.parse(text) for text in expect or []]
    with running_user_code(is_silent=quiet or as_json) as (show, warned):
        if run is not None:
            words = [*([os.fspath(case_options.file)] if case_options.file else []), *invocation.args]
            report, header = _check_script(run, words, step, budget, show)
            notes: list[str] = []
        else:
            show("reading the model")
            case = open_case(case_options, typed, batch_axis=axis, is_training=mode == "train")
            from deconv_cli.gradients.checker import check_subject

            report = check_subject(case.subject, budget=budget, on_progress=show)
            header = {"mode": mode, "loss_name": case.describe_loss()} | case.describe()
            notes = case.notes
    expected, unmet, code, conclusion = conclude(report, expectations)
    from deconv_cli.report.gradient_record import describe_gradients

    record: dict[str, Any] = {
        "schema": SCHEMA,
        "command": "check-grad",
        "versions": {"deconv": package_version("deconv-cli"), "torch": package_version("torch")},
        **header,
        **describe_gradients(report, expected),
    }
    notes = [*notes, *map(with_options, record["notes"])]
    if record["data"]["kind"] == "synthetic":
        notes.append("the data are synthetic: the verdicts hold for these data, and ZERO may change with yours")
    if unmet:
        notes.append(f"expected, but not found: {', '.join(map(str, unmet))}")
    record["notes"] = [*notes, *describe_warnings(warned)]
    record |= {"exit_code": int(code), "conclusion": conclusion}
    record["time_s"] = time.perf_counter() - started
    if as_json:
        print_document(record)
    elif quiet:
        print_answer(record["conclusion"])
    else:
        _print_findings(report, record, verbose=verbose)
    if not quiet:
        for note in record["notes"]:
            print_note(note)
        for sentence in record["not_checked"]:
            print_warning(f"not checked: {with_options(sentence)}.")
    if code is not ExitCode.SUCCESS:
        raise typer.Exit(code)


@dataclass(frozen=True)
class Expectation:
    """A verdict on a parameter (`*` is a wildcard), on the `model` as a whole, or on a line, `train.py:26`."""

    verdict: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Expectation:
        """Read `UNUSED:head.weight`; another form or no such verdict is a `UsageError`."""
        from deconv_cli.gradients.findings import Verdict

        word, colon, name = text.partition(":")
        known = {verdict.replace(" ", "-"): verdict.value for verdict in Verdict}
        verdict = known.get(word.upper().replace(" ", "-"))
        if not colon or not name or verdict is None:
            meant = nearest_name(known, word.upper()) if verdict is None else None
            hint = f"; perhaps you mean {meant}" if meant else ""
            raise UsageError(f"--expect must be VERDICT:NAME, such as UNUSED:head.weight, but is '{text}'{hint}.")
        return cls(verdict, name)

    def meets(self, finding: Finding, name: str) -> bool:
        """Return whether a finding for a parameter, or for the model as a whole, is the expected one."""
        lines = [Path(str(cause.location)).resolve() for cause in finding.causes if cause.location.file]
        wanted = Path(self.name)
        is_there = any(line == wanted.resolve() or line.match(str(wanted)) for line in lines)
        return finding.verdict == self.verdict and (is_there or fnmatch.fnmatchcase(name, self.name))

    def __str__(self) -> str:
        """Write it as it is typed."""
        return f"{self.verdict}:{self.name}"


def conclude(
    report: GradientReport, expectations: list[Expectation]
) -> tuple[frozenset[str], list[Expectation], ExitCode, str]:
    """Leave out the expected findings, and count the rest; frozen parameters are counted separately.

    Returns:
        Expected names of parameters and expected verdicts on the model as a whole, the expectations without a matching
        finding, the exit code, and a conclusion in one line.
    """
    from deconv_cli.gradients.findings import Verdict

    found: list[tuple[Finding, str, str]] = [(finding, finding.name, finding.name) for finding in report.parameters]
    found += [(finding, "model", str(finding.verdict)) for finding in report.general]
    met = {e for e in expectations for finding, name, _ in found if e.meets(finding, name)}
    expected = frozenset(key for finding, name, key in found if any(e.meets(finding, name) for e in expectations))
    rest = [finding for finding in report.parameters if finding.name not in expected]
    n_faults = sum(finding.is_fault for finding in rest)
    n_undecided = sum(finding.is_undecided for finding in rest)
    n_general = sum(finding.is_fault and finding.verdict not in expected for finding in report.general)
    n_frozen = sum(finding.verdict == Verdict.FROZEN for finding in report.parameters)
    n_all = len(report.parameters) - n_frozen
    if n_faults or n_general:
        also = f" and {n_general} of the model as a whole" if n_general else ""
        code, conclusion = ExitCode.FAULT_FOUND, f"faults: {n_faults} of {counted(n_all, 'parameter')}{also}"
    elif n_undecided:
        code = ExitCode.UNTRUSTWORTHY
        conclusion = f"no verdict on {n_undecided} of {counted(n_all, 'parameter')}, and no fault in the others"
    else:
        code, conclusion = ExitCode.SUCCESS, f"healthy: {counted(n_all, 'parameter')}"
    conclusion += f" ({len(expected)} expected)" if expected else ""
    conclusion += f", {n_frozen} more are frozen" if n_frozen else ""
    return expected, [e for e in expectations if e not in met], code, conclusion


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
            raise UsageError(f"{option_name(name)} does not go with --run, where the script decides it; leave it out.")


def _check_script(
    path: Path, arguments: list[str], step: int, budget: float, show: Callable[[str], None]
) -> tuple[GradientReport, dict[str, Any]]:
    """Run a script and check it; returns the report, and a description of model, loss and data."""
    from deconv_cli.gradients.training.script import check_script

    if not path.is_file():
        raise UsageError(f"--run must name a Python script, but there is no file '{path}'.")
    with path.open("rb") as file:
        start = file.read(4096)
    if b"\0" in start:
        raise UsageError(f"--run must name a Python script, but '{path}' is no text; give a model without --run.")
    report = check_script(path, arguments, step=step, budget=budget, on_progress=show)
    return report, {
        "model": {"name": str(path), "kind": "script", "sha256": None, "class": None, "code": str(path)},
        "mode": "the script's own",
        "loss_name": f"backward pass {step}",
        "data": {"kind": "the script's own", "inputs": [], "seed": None},
    }


def _print_findings(report: GradientReport, record: dict[str, Any], *, verbose: bool) -> None:
    """Print a table of parameters, then every fault with its line and reason, on stdout."""
    from rich.text import Text

    from deconv_cli.gradients.findings import explain
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
    details = {found.name: found.detail for found in report.parameters if found.detail}
    printed: list[tuple[Fault | Finding, str, str]] = [
        (fault, name_some(fault.parameters), next((details[n] for n in fault.parameters if n in details), ""))
        for fault in (*report.faults(), *report.remarks())
    ]
    faulty = {fault.verdict for fault in report.faults()} - {"WRONG"}
    printed += [(found, "the model", found.detail) for found in report.general if found.verdict not in faulty]
    for found, names, detail in printed:
        console.print()
        line(f"{found.verdict}: {names}", "bold")
        for sentence in ([f"  {detail}"] if detail else []) + explain(found.causes):
            line(sentence.replace("accept this finding", f"accept it with --expect {found.verdict}:NAME"))
    print_answer(record["conclusion"])


def _count(findings: Iterable[dict[str, Any]]) -> str:
    """Count findings by verdict: `14 more that are OK, 36 NOT REACHED`."""
    counts = Counter(finding["verdict"] for finding in findings)
    healthy = [f"{counts.pop('OK')} more that are OK"] if "OK" in counts else []
    return ", ".join([*healthy, *(f"{n} {verdict}" for verdict, n in counts.items())])


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
