"""The gradient checker: evidence is gathered, then the rules turn it into findings."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from deconv_cli.argument_types import check_type
from deconv_cli.errors import UsageError
from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import ParameterFinding, Verdict
from deconv_cli.gradients.gathering import gather_evidence
from deconv_cli.gradients.gradient_report import GradientReport
from deconv_cli.gradients.input_weights import InputsAsWeights, with_inputs_as_weights
from deconv_cli.gradients.losses import projection, user_loss
from deconv_cli.gradients.plain_containers import describe_plain_containers
from deconv_cli.gradients.recurrence.unrolled_layers import gate_norms
from deconv_cli.gradients.rules import find_for_parameter, find_in_model
from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.tensors_in import norm_of

DEFAULT_BUDGET = 60.0
"""Seconds for finite differences."""


def check_gradients(
    model: nn.Module,
    *inputs: Any,  # noqa: ANN401  whatever the model takes
    loss: Callable[..., Any] | None = None,
    target: Any = None,  # noqa: ANN401  whatever the loss takes
    seed: int = 0,
    batch_axis: int | Literal["auto"] | None = "auto",
    budget: float = DEFAULT_BUDGET,
    second_order: bool = False,
    wrt: Literal["parameters", "inputs"] = "parameters",
    **keywords: Any,  # noqa: ANN401  whatever the model takes
) -> GradientReport:
    """Find for every parameter of a model whether its gradient arrives and is right, and which line is at fault if not.

    Args:
        model: in the mode in which it is to be checked; it is left as it was.
        *inputs: positional inputs of forward.
        loss: called with the output and the target, or with the output alone, and gives a scalar. None weighs every
            number of the output with a fixed random weight; a model that gives a single number has its own loss.
        target: given to the loss.
        seed: set before every run, for random layers.
        batch_axis: which axis of inputs and outputs counts the samples, None where there is none; `auto` takes the
            first, unless it looks like time.
        budget: seconds for finite differences; what they do not reach is listed.
        second_order: also compare second derivatives.
        wrt: what gradients are taken by; the inputs are called `inputs.0`, `inputs.1`, ... or by their names.
        **keywords: inputs of forward by name.

    Returns:
        The report: `parameters` holds a finding for each, `faults()` gathers them by cause.

    Raises:
        UsageError: the model cannot be run on these inputs, or has no parameters.
    """
    check_type(model, nn.Module, "the model")
    value = projection if loss is None else user_loss(loss, has_target=target is not None)
    axis = 0 if batch_axis == "auto" else batch_axis
    subject = Subject(model, inputs, keywords, target, value, seed, axis, is_axis_given=batch_axis != "auto")
    if wrt == "inputs":
        subject = with_inputs_as_weights(subject)
    return check_subject(subject, budget=budget, second_order=second_order)


def check_subject(
    subject: Subject,
    *,
    budget: float = DEFAULT_BUDGET,
    second_order: bool = False,
    on_progress: Callable[[str], None] = lambda _sentence: None,
) -> GradientReport:
    """Check a model that is bound to its inputs and its loss, and is left as it was; see `check_gradients`.

    Raises:
        UsageError: the model cannot be run on these inputs, has no parameters, or is spread over devices.
    """
    if not subject.parameters:
        hints = "".join(f"; {sentence}" for sentence in describe_plain_containers(subject.model)[:1])
        raise UsageError(f"the model has no parameters, so there is no gradient to check{hints}.")
    devices = sorted({str(parameter.device) for parameter in subject.parameters.values()})
    if len(devices) > 1:
        raise UsageError(
            f"the model should be on one device, but it is spread over {', '.join(devices)}; check it on one of them."
        )
    started = time.monotonic()
    try:
        with subject.without_gradients():
            evidence = gather_evidence(subject, budget=budget, second_order=second_order, on_progress=on_progress)
            return _report(evidence, started)
    except torch.OutOfMemoryError as error:
        raise UsageError("the model does not fit into memory; take smaller inputs.") from error


def _report(evidence: Evidence, started: float) -> GradientReport:
    parameters = tuple(_finding(evidence, name) for name in evidence.parameters)
    unchecked = [f"{found.name}: {found.detail}" for found in parameters if found.verdict == Verdict.NOT_CHECKED]
    doubt = evidence.batch.doubt
    double = evidence.double
    return GradientReport(
        parameters=parameters,
        general=find_in_model(evidence),
        recurrent=double.series if double is not None else (),
        loss=float(evidence.forward.loss.detach()) if evidence.is_loss_finite else None,
        dtype=double.dtype if double is not None else None,
        notes=evidence.notes,
        not_checked=(
            *evidence.not_checked,
            *unchecked,
            *([f"whether samples of the batch leak into one another: {doubt}"] if doubt else []),
        ),
        n_evaluations=double.n_evaluations if double is not None else 0,
        time_s=time.monotonic() - started,
        noun="input" if isinstance(evidence.model, InputsAsWeights) else "parameter",
    )


def _finding(evidence: Evidence, name: str) -> ParameterFinding:
    """Ask the rules, and put the numbers beside what they find."""
    found = find_for_parameter(evidence, name)
    gradient = evidence.sharpest_gradient(name)
    return ParameterFinding(
        found.verdict,
        found.causes,
        found.detail,
        name=name,
        shape=tuple(evidence.parameters[name].shape),
        gradient_norm=norm_of(gradient) if gradient is not None else None,
        weight_norm=evidence.weight_norms[name],
        comparison=evidence.comparison(name),
        second_order=evidence.second_comparison(name),
        gates=gate_norms(evidence.model, name, gradient) if gradient is not None else {},
    )
