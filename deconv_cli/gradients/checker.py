"""Check every gradient of a model: collect the evidence, then let the rules turn it into findings."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from deconv_cli.argument_types import check_type
from deconv_cli.errors import DeconvError, UsageError
from deconv_cli.gradients.double_precision import ComparisonPlan, gather_double
from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import GradientReport, ParameterFinding, Verdict, first_line
from deconv_cli.gradients.handwritten import CheckedFunctions, check_functions
from deconv_cli.gradients.inputs import InputsAsWeights, with_inputs_as_weights
from deconv_cli.gradients.losses import projection, user_loss
from deconv_cli.gradients.other_data import BatchIndependence, find_reached_by_others, try_batch
from deconv_cli.gradients.replacements import find_failing_cures
from deconv_cli.gradients.reruns import (
    describe_randomness,
    find_moved_from_outside,
    find_non_finite_sources,
    find_overwritten,
    is_uneven,
    measure_responses,
    repeat,
    take_first_steps,
)
from deconv_cli.gradients.rewritten_lines import find_failing_fixes
from deconv_cli.gradients.rules import find_for_parameter, find_in_model
from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.tensors import norm_of
from deconv_cli.gradients.through_time import gate_norms
from deconv_cli.gradients.tracing.backward_trace import BackwardTrace, Magnitude, trace_backward
from deconv_cli.gradients.tracing.code_location import location_of_error
from deconv_cli.gradients.tracing.forward_trace import ForwardTrace, Operation
from deconv_cli.gradients.tracing.interception import trace_forward
from deconv_cli.gradients.unregistered import describe_plain_containers, find_unregistered

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


_SLOW_SHARE = 40
"""Finite differences are taken on a few samples only, if a forward pass takes more than this part of the budget."""

_N_REPEATED = 2
"""Passes by which it is found out whether the loss is the same again."""

_FEW = 2

_FUNCTIONS_SHARE = 0.4
"""Part of the time that hand-written backwards may take."""


def gather_evidence(
    subject: Subject, *, budget: float, second_order: bool, on_progress: Callable[[str], None]
) -> Evidence:
    """Measure all that the rules look at; `budget` is that of finite differences in seconds.

    Raises:
        UsageError: the model cannot be run on these inputs.
    """
    with contextlib.ExitStack() as stack:
        return _gather(subject, stack, budget, second_order=second_order, on_progress=on_progress)


def _gather(
    subject: Subject,
    stack: contextlib.ExitStack,
    budget: float,
    *,
    second_order: bool,
    on_progress: Callable[[str], None],
) -> Evidence:
    _shape_lazy_layers(subject)
    weight_norms = {name: norm_of(parameter) for name, parameter in subject.parameters.items()}
    on_progress("watching forward and backward")
    forward = _first_forward(subject, stack)
    started = time.monotonic()
    repetition = repeat(subject, forward)
    # Passes that are warm: the first one of a process also loads and compiles.
    is_slow = bool(budget) and (time.monotonic() - started) / _N_REPEATED > budget / _SLOW_SHARE
    backward = trace_backward(forward.loss, subject.trainable) if forward.reached else None
    forward.log.differentiable.clear()  # what large models compute takes much memory
    is_finite = bool(forward.loss.detach().isfinite())
    origins = () if is_finite else _origins(subject)
    started = time.monotonic()
    is_checkable = not repetition.is_noisy and (backward is None or backward.error is None)
    functions = CheckedFunctions()
    if is_checkable and backward is not None and forward.log.calls:
        on_progress("checking hand-written backwards")
        functions = check_functions(subject, _FUNCTIONS_SHARE * budget, second_order=second_order)
    names = _usable_gradients(backward) if is_finite else frozenset()
    blamed = {name for item in functions.wrong.values() for name in item.parameters}
    left = budget - (time.monotonic() - started)
    plan = ComparisonPlan(names, names - blamed if second_order else frozenset(), left, on_progress)
    with subject.narrowed(_FEW) if is_slow else contextlib.nullcontext(False) as is_narrowed:
        double = gather_double(subject, plan) if is_checkable else None
        batch = _try_batch(subject, on_progress) if not repetition.is_noisy else None
    writes = forward.log.parameter_writes
    notes = [*describe_plain_containers(subject.model), *describe_randomness(repetition, subject.seed)]
    notes += [_NARROWED] if is_narrowed else []
    notes += functions.notes
    return Evidence(
        model=subject.model,
        parameters=subject.parameters,
        weight_norms=weight_norms,
        forward=forward,
        backward=backward,
        origins=origins,
        non_finite_sources=() if is_finite else find_non_finite_sources(subject),
        repetition=repetition,
        responses=measure_responses(subject, forward, backward),
        moved_from_outside=find_moved_from_outside(subject, forward, backward),
        unregistered=find_unregistered(subject, forward),
        overwritten=find_overwritten(subject, {name: writes[forward.bit(name)] for name in sorted(subject.written)}),
        first_steps=take_first_steps(subject) if is_checkable and is_uneven(subject, backward) else None,
        failing_fixes=find_failing_fixes(subject, forward, backward) | find_failing_cures(subject, forward, backward),
        reached_by_others=find_reached_by_others(subject, backward),
        double=double,
        wrong_inputs=tuple(functions.wrong.values()),
        batch=batch or BatchIndependence(subject.batch_axis, doubt="the output is noisy"),
        budget=budget,
        notes=(*notes, *(double.notes if double is not None else ())),
        not_checked=(*functions.unchecked, *(double.not_checked if double is not None else ())),
    )


_NARROWED = (
    f"the model is slow, so finite differences were taken on {_FEW} samples of the batch; hand-written backwards were "
    "checked on all of it; a longer budget takes all samples"
)


def _shape_lazy_layers(subject: Subject) -> None:
    """Run the model once if it has layers that take their shape from the first input."""
    if any(map(is_lazy, (*subject.parameters.values(), *subject.model.buffers()))):
        with torch.no_grad(), _explaining():
            subject.model(*subject.arguments, **subject.keywords)


@contextlib.contextmanager
def _explaining() -> Iterator[None]:
    """Say where a model fails.

    Raises:
        UsageError: it does.
    """
    try:
        yield
    except DeconvError:
        raise
    except Exception as error:
        location = location_of_error(error)
        where = f" at {location}" if location else ""
        raise UsageError(
            f"the model cannot be run on these inputs{where} ({type(error).__name__}: {first_line(error)}); check the "
            "inputs, their shapes, the loss and its target."
        ) from error


def _first_forward(subject: Subject, stack: contextlib.ExitStack) -> ForwardTrace:
    """Run forward for the first time, and settle which parameters it writes to, which later runs put back.

    Parameters that the first pass alone writes to are initialized by it: they keep these values until `stack` ends.
    """
    subject.written = frozenset(subject.parameters)
    with contextlib.ExitStack() as own, _explaining():
        own.enter_context(subject.untouched_state())
        with subject.starting():
            forward = trace_forward(subject)
            later = trace_forward(subject) if forward.log.parameter_writes else forward
        if later.log.parameter_writes.keys() < forward.log.parameter_writes.keys():
            forward = later
            stack.push(own.pop_all())
    subject.written = frozenset(name for name in forward.names if forward.bit(name) in forward.log.parameter_writes)
    return forward


def _origins(subject: Subject) -> tuple[Operation, ...]:
    """Find where NaN or infinity arises; where masks alone made infinity, NaN does so where these meet."""
    log = trace_forward(subject, find_origins=True).log
    return tuple(log.origins or log.nan_origins)


def _usable_gradients(backward: BackwardTrace | None) -> frozenset[str]:
    """Name the parameters whose gradient is finite and not zero."""
    given = backward.gradients if backward is not None else {}
    magnitudes = {name: Magnitude.of([gradient]) for name, gradient in given.items()}
    return frozenset(name for name, found in magnitudes.items() if found.is_finite and not found.is_zero)


def _try_batch(subject: Subject, on_progress: Callable[[str], None]) -> BatchIndependence:
    on_progress("looking for leaks between samples")
    try:
        with subject.in_double():
            return try_batch(subject)
    except Exception as error:  # noqa: BLE001  evaluation mode may take another way, which may fail on its own
        return BatchIndependence(subject.batch_axis, doubt=first_line(error))
