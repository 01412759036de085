"""Check every gradient of a model: collect the evidence, then let the rules turn it into findings."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from deconv_cli.errors import DeconvError, UsageError, check_type
from deconv_cli.gradients.double_precision import DoubleEvidence, gather_double
from deconv_cli.gradients.evidence import Evidence, is_same, repeat
from deconv_cli.gradients.findings import GradientReport, ParameterFinding, Verdict, first_line
from deconv_cli.gradients.losses import projection, user_loss
from deconv_cli.gradients.nested_tensors import norm_of
from deconv_cli.gradients.other_data import BatchIndependence, try_batch
from deconv_cli.gradients.rules import MODEL_RULES, find_all, find_for_parameter
from deconv_cli.gradients.rules.usage import describe_plain_container
from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.tracing.backward_trace import trace_backward
from deconv_cli.gradients.tracing.code_location import location_of_error
from deconv_cli.gradients.tracing.forward_trace import ForwardTrace
from deconv_cli.gradients.tracing.interception import trace_forward

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
    **keywords: Any,  # noqa: ANN401  whatever the model takes
) -> GradientReport:
    """Find for every parameter of a model whether its gradient arrives and is right, and which line is at fault if not.

    Args:
        model: in the mode to check it in; it is left as it was.
        *inputs: positional inputs of forward.
        loss: called with the output and the target, or with the output alone, and gives a scalar. None weighs every
            number of the output with a fixed random weight; a model that gives a single number has its own loss.
        target: given to the loss.
        seed: set before every run, for random layers.
        batch_axis: which axis of inputs and outputs counts the samples, None for no such axis; `auto` is the first,
            unless it looks like time.
        budget: seconds for finite differences; the report lists what they did not reach.
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
    return check_subject(subject, budget=budget)


def check_subject(
    subject: Subject,
    *,
    budget: float = DEFAULT_BUDGET,
    on_progress: Callable[[str], None] = lambda _sentence: None,
) -> GradientReport:
    """Check a model that is bound to its inputs and its loss, and is left as it was; see `check_gradients`.

    Raises:
        UsageError: the model cannot be run on these inputs, has no parameters, or is spread over devices.
    """
    if not subject.parameters:
        hint = describe_plain_container(subject.model)
        raise UsageError(f"the model has no parameters, so there is no gradient to check{'; ' * bool(hint)}{hint}.")
    devices = sorted({str(parameter.device) for parameter in subject.parameters.values()})
    if len(devices) > 1:
        raise UsageError(
            f"the model should be on one device, but it is spread over {', '.join(devices)}; check it on one of them."
        )
    started = time.monotonic()
    try:
        with subject.without_gradients(), contextlib.ExitStack() as stack:
            evidence = collect_evidence(subject, stack, budget, on_progress)
            return _report(evidence, started)
    except torch.OutOfMemoryError as error:
        raise UsageError("the model does not fit into memory; take smaller inputs.") from error


def _report(evidence: Evidence, started: float) -> GradientReport:
    parameters = tuple(_finding(evidence, name) for name in evidence.parameters)
    double, doubt = evidence.double, evidence.batch.doubt
    return GradientReport(
        parameters=parameters,
        general=find_all(MODEL_RULES, evidence),
        loss=float(evidence.forward.loss.detach()) if evidence.is_loss_finite else None,
        dtype=double.dtype,
        notes=double.notes,
        not_checked=(
            *double.unchecked,
            *(f"{found.name}: {found.detail}" for found in parameters if found.verdict == Verdict.NOT_CHECKED),
            *([f"leaks between samples of the batch: {doubt}"] if doubt else []),
        ),
        n_evaluations=double.n_evaluations,
        time_s=time.monotonic() - started,
    )


def _finding(evidence: Evidence, name: str) -> ParameterFinding:
    found = find_for_parameter(evidence, name)
    return ParameterFinding(
        found.verdict,
        found.causes,
        found.detail,
        found.is_excused,
        name=name,
        shape=tuple(evidence.parameters[name].shape),
        gradient_norm=evidence.gradient_norm(name),
        weight_norm=evidence.weight_norms[name],
        comparison=evidence.comparison(name),
    )


def collect_evidence(
    subject: Subject, stack: contextlib.ExitStack, budget: float, on_progress: Callable[[str], None]
) -> Evidence:
    """Watch a forward and a backward pass, and compare gradients with finite differences, in `budget` seconds.

    `stack` restores the model when it ends; the evidence is for use before.

    Raises:
        UsageError: the model cannot be run on these inputs.
    """
    weight_norms, forward = _first_forward(subject, stack, on_progress)
    # Another forward pass may overwrite buffers that this backward pass needs.
    backward = trace_backward(forward.loss, subject.trainable, is_reached=bool(forward.reached))
    losses = repeat(subject, forward)
    is_checkable = is_same(*losses) and backward.error is None
    magnitudes = backward.magnitudes.items() if bool(forward.loss.detach().isfinite()) else ()
    names = frozenset(name for name, found in magnitudes if found.is_finite and not found.is_zero)
    double = gather_double(subject, names, budget, on_progress) if is_checkable else DoubleEvidence(forward, backward)
    batch = _try_batch(subject, on_progress)
    return Evidence(subject, weight_norms, forward, backward, losses, double, batch, budget)


@contextlib.contextmanager
def _naming_the_line() -> Iterator[None]:
    """Name the line at which a model fails.

    Raises:
        UsageError: it fails.
    """
    try:
        yield
    except DeconvError:
        raise
    except Exception as error:
        location = location_of_error(error)
        where = f" at {location}" if location else ""
        raise UsageError(
            f"the model cannot be run on these inputs{where} ({type(error).__name__}: “{first_line(error)}”); check "
            "the inputs, their shapes, the loss and its target."
        ) from error


def _first_forward(
    subject: Subject, stack: contextlib.ExitStack, on_progress: Callable[[str], None]
) -> tuple[dict[str, float], ForwardTrace]:
    """Run forward for the first time, and find the parameters it writes to, which later runs restore.

    If only the first pass writes to a parameter, it initializes it: the new values stay until `stack` ends.

    Returns:
        The norms of the weights before the pass, and the pass.
    """
    if any(map(is_lazy, (*subject.parameters.values(), *subject.model.buffers()))):
        with torch.no_grad(), _naming_the_line():  # lazy layers take their shape from the first input
            subject.model(*subject.arguments, **subject.keywords)
    weight_norms = {name: norm_of(parameter) for name, parameter in subject.parameters.items()}
    on_progress("watching forward and backward")
    subject.written = frozenset(subject.parameters)
    with contextlib.ExitStack() as own, _naming_the_line():
        own.enter_context(subject.untouched_state())
        with subject.with_fields(is_starting=True):
            forward = trace_forward(subject)
            later = trace_forward(subject) if forward.parameter_writes else forward
        if later.parameter_writes.keys() < forward.parameter_writes.keys():
            forward = later
            stack.push(own.pop_all())
    if subject.moving and not forward.parameter_writes:
        later = trace_forward(subject)
        subject.has_aliases = not is_same(float(later.loss.detach()), float(forward.loss.detach()))
        forward = forward if subject.has_aliases else later
    subject.written = frozenset(name for name in forward.names if forward.bit(name) in forward.parameter_writes)
    return weight_norms, forward


def _try_batch(subject: Subject, on_progress: Callable[[str], None]) -> BatchIndependence:
    on_progress("looking for leaks between samples")
    try:
        with subject.in_double():
            return try_batch(subject)
    except Exception as error:  # noqa: BLE001  evaluation mode may run other code, which may fail
        return BatchIndependence(subject.batch_axis, doubt=first_line(error))
