"""The order in which evidence is gathered: one watched forward pass, one watched backward pass, then repetitions."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import torch
from torch.nn.parameter import is_lazy

from deconv_cli.errors import DeconvError, UsageError
from deconv_cli.gradients.batch_independence import BatchIndependence, try_batch
from deconv_cli.gradients.cure_trial import find_failing_cures
from deconv_cli.gradients.double_precision import ComparisonPlan, gather_double
from deconv_cli.gradients.evidence import Evidence
from deconv_cli.gradients.findings import first_line
from deconv_cli.gradients.first_steps import is_uneven, take_first_steps
from deconv_cli.gradients.fix_trial import find_failing_fixes
from deconv_cli.gradients.handwritten import CheckedFunctions, check_functions
from deconv_cli.gradients.other_batches import find_reached_by_others
from deconv_cli.gradients.plain_containers import describe_plain_containers
from deconv_cli.gradients.reruns import (
    describe_randomness,
    find_moved_from_outside,
    find_non_finite_sources,
    find_overwritten,
    measure_responses,
    repeat,
)
from deconv_cli.gradients.stray_weights import find_unregistered
from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.tensors_in import norm_of
from deconv_cli.gradients.tracing.backward_trace import BackwardTrace, Magnitude, trace_backward
from deconv_cli.gradients.tracing.code_location import location_of_error
from deconv_cli.gradients.tracing.forward_trace import ForwardTrace, Operation
from deconv_cli.gradients.tracing.interception import trace_forward

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
