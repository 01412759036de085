"""The report in plain words: whether training would work, and what stands in its way."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from deconv_cli.gradients.findings import Cause, Finding, ParameterFinding, grouped
from deconv_cli.vocabulary import counted

_WITHOUT_GRADIENT = ("UNUSED", "NOT-LOSS", "DETACHED", "ZERO", "OVERWRITTEN")
_UNCHECKED = ("NOISY", "NOT CHECKED")
_MAX_NAMES = 6
_OF_ALL = {
    "NOTHING TRAINS": "nothing that could be trained is free to move",
    "UNREGISTERED": "the loss depends on weights that no optimizer is given",
    "OVERWRITTEN": "weights are set back after they were moved",
    "LOSS INPUT": "the loss is given something else than it is for",
    "OPTIMIZER": "the optimizer does not move the weights as it should",
    "ACCUMULATED": "gradients of earlier passes are used again",
    "GRADIENT LOST": "gradients are lost before the step",
    "CLIPPING": "gradients are not limited as it is meant",
    "FAILS": "the script ends with an error",
    "IN-PLACE": "what backward needs is overwritten",
    "BATCH-LEAK": "samples leak into one another",
    "EXPLODING": "gradients explode through time",
    "DETACHED": "a draw carries no gradient",
    "WRONG": "a hand-written backward is wrong",
}
"""Findings of the model as a whole, in plain words."""


def summarize(
    parameters: Sequence[ParameterFinding],
    general: Sequence[Finding],
    expected: frozenset[str] = frozenset(),
    noun: str = "parameter",
) -> str:
    """Say in one line whether training would work; `expected` is accepted, `noun` what gradients are by."""
    trainable = [found for found in parameters if found.verdict != "FROZEN"]
    rest = [found for found in trainable if found.name not in expected]
    without = [found for found in rest if found.verdict in _WITHOUT_GRADIENT]
    others = [found for found in rest if found.is_fault and found not in without]
    of_all = [found for found in general if found.is_fault and found.verdict not in expected]
    trains = noun == "parameter"
    if not trainable or len(without) == len(trainable):
        whole = "its whole" if any(found.gradient_norm for found in without) else "a"  # cut on one of its ways
        return f"{'Training would not work: no' if trains else 'No'} {noun} gets {whole} gradient."
    sentences, of_trainable = [], f"of {counted(len(trainable), noun)}"
    if without:
        sentences.append(f"{len(without)} {of_trainable} {'would not train' if trains else 'get no gradient'}")
    if others:
        badly = "would train badly" if trains else "get a wrong one"
        sentences.append(f"{len(others)} {of_trainable} {badly} ({_verdicts(others)})")
    if of_all:
        sentences += dict.fromkeys(
            f"{_OF_ALL.get(found.verdict, 'there is a fault')} ({found.verdict})" for found in of_all
        )
    if sentences:
        return (
            f"{'Training would not work as it stands' if trains else 'Gradients are at fault'}: {'; '.join(sentences)}."
        )
    unknown = [found for found in trainable if found.verdict in _UNCHECKED]
    if unknown:
        return f"Gradients arrive, but {len(unknown)} of {len(trainable)} could not be checked."
    substituted = [found for found in trainable if found.verdict == "SUBSTITUTED"]
    if substituted:
        share = f"{len(substituted)} of {len(trainable)}"
        return f"Training can work: every gradient arrives, and is right but for {share} that the code substitutes."
    if len(rest) < len(trainable) or any(found.verdict in expected for found in general):
        return "Training can work but for what is expected; every other gradient arrives and is right."
    if noun != "parameter":
        return f"Gradients are right: every {noun} gets one, and it agrees with finite differences."
    return "Training can work: every trainable parameter gets a gradient, and it is right."


def write_report(parameters: Sequence[ParameterFinding], general: Sequence[Finding], noun: str = "parameter") -> str:
    """Write the report as text: the summary, then each fault with its line, its reason and what to write instead."""
    blocks = [summarize(parameters, general, noun=noun)]
    for fault in grouped(found for found in parameters if found.is_fault):
        blocks.append("\n".join([f"{fault.verdict}: {name_some(fault.parameters)}", *_explain(fault.causes)]))
    for found in general:
        blocks.append("\n".join([f"{found.verdict}: the model", *_explain(found.causes)]))
    return "\n\n".join(blocks)


def write_html(parameters: Sequence[ParameterFinding], general: Sequence[Finding], noun: str = "parameter") -> str:
    """Write the report for a notebook: the summary, a table of the parameters, and the faults."""
    rows = "".join(
        f"<tr><td>{html.escape(found.verdict)}</td><td>{html.escape(found.name)}</td>"
        f"<td>{'' if found.gradient_norm is None else format(found.gradient_norm, '.3g')}</td></tr>"
        for found in parameters
    )
    head, _, faults = write_report(parameters, general, noun).partition("\n\n")
    table = f"<table><tr><th>verdict</th><th>{noun}</th><th>‖gradient‖</th></tr>{rows}</table>"
    return f"<p><b>{html.escape(head)}</b></p>{table}<pre>{html.escape(faults)}</pre>"


def name_some(names: Iterable[str]) -> str:
    """List the first few names, and count the others."""
    listed = list(names)
    more = f" and {len(listed) - _MAX_NAMES} more" if len(listed) > _MAX_NAMES else ""
    return ", ".join(listed[:_MAX_NAMES]) + more


def _explain(causes: Iterable[Cause]) -> list[str]:
    lines = []
    for cause in causes:
        source = f"    {cause.location.source}" if cause.location.source else ""
        lines += [f"  at       {cause.location}  {cause.operation}{source}", f"  why      {cause.why}"]
        lines.append(f"  instead  {cause.suggestion}")
    return lines


def _verdicts(findings: Iterable[Finding]) -> str:
    return ", ".join(dict.fromkeys(str(found.verdict) for found in findings))
