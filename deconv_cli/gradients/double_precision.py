"""Compare gradients with finite differences, in float64 if the model runs in it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from deconv_cli.errors import DeconvError, as_too_large
from deconv_cli.gradients.findings import first_line
from deconv_cli.gradients.finite_difference_search import compare_tensors
from deconv_cli.gradients.finite_differences import Comparison, Direction, ScalarFunction, TensorGradient
from deconv_cli.gradients.handwritten import WrongInput, check_functions
from deconv_cli.gradients.nested_tensors import NARROW
from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.torch_modes import LiftedHalves
from deconv_cli.gradients.tracing.backward_trace import BackwardTrace, trace_backward
from deconv_cli.gradients.tracing.forward_trace import ForwardTrace
from deconv_cli.gradients.tracing.interception import trace_forward

_DOUBLE, _SINGLE = 2.3e-16, 1.2e-7

_FUNCTIONS_SHARE = 0.4
"""Part of the time that hand-written backwards may take."""


@dataclass(frozen=True, eq=False)
class DoubleEvidence:
    """The measurements in float64, or in the model's own precision if it does not run in float64 (`dtype`).

    Without a `dtype` there are no measurements: there was no gradient, or nothing to compare it with.

    Attributes:
        results: gradients against finite differences, by parameter; None where the time was up.
        constants: parameters without an effect on the loss, since the gradients that arrive at them cancel.
        minima: parameters at a minimum or maximum, where the gradient is zero.
        wrong_inputs: hand-written backwards with a wrong gradient.
        unchecked: sentences on calls of hand-written Functions that could not be checked.
    """

    forward: ForwardTrace
    backward: BackwardTrace
    dtype: str | None = None
    results: Mapping[str, Comparison | None] = field(default_factory=dict)
    constants: frozenset[str] = frozenset()
    minima: frozenset[str] = frozenset()
    n_evaluations: int = 0
    notes: tuple[str, ...] = ()
    wrong_inputs: tuple[WrongInput, ...] = ()
    unchecked: tuple[str, ...] = ()


def gather_double(
    subject: Subject, names: frozenset[str], budget: float, on_progress: Callable[[str], None]
) -> DoubleEvidence:
    """Check hand-written backwards, and compare gradients with finite differences, in `budget` seconds.

    The parameters `names` have a finite gradient other than zero.
    """
    try:
        with subject.in_double():
            found = _compare(subject, names, budget, on_progress, "float64")
    except DeconvError:
        raise
    except RuntimeError as error:
        if as_too_large(error) is not None:
            raise
        dtype = str(next(iter(subject.parameters.values())).dtype).removeprefix("torch.")
        found = _compare(subject, names, budget, on_progress, dtype)
        note = (
            f"the model does not run in float64 (“{first_line(error)}”); finite differences used {dtype}, which is "
            "less precise"
        )
        return replace(found, notes=(note,)) if found.dtype else found
    return found


def _compare(
    subject: Subject, names: frozenset[str], budget: float, on_progress: Callable[[str], None], dtype: str
) -> DoubleEvidence:
    deadline = time.monotonic() + budget
    forward = trace_forward(subject)
    if not forward.reached:
        return DoubleEvidence(forward, BackwardTrace({}))
    if forward.calls:
        on_progress("checking hand-written backwards")
    wrong, unchecked = check_functions(forward, _FUNCTIONS_SHARE * budget)
    on_progress("comparing with finite differences")
    with LiftedHalves():
        backward = trace_backward(forward.loss, subject.trainable)
    found = DoubleEvidence(forward, backward, wrong_inputs=tuple(wrong), unchecked=tuple(unchecked))
    if backward.error is not None:
        return found
    casts = forward.casts
    is_narrow = dtype != "float64" or bool(casts) or forward.loss.dtype in NARROW
    epsilon = _SINGLE if is_narrow else _DOUBLE
    holding = subject.holding_detached if forward.is_detached_on_purpose else contextlib.nullcontext
    with holding():
        evaluate, value = subject.evaluator(float(forward.loss.detach()))
        function = ScalarFunction(evaluate, epsilon, deadline, value)
        constants, minima, tensors = _sort(subject, names, backward, function)
        results = compare_tensors(
            function,
            tensors,
            seed=subject.seed,
            on_progress=lambda done, of: on_progress(f"finite differences: {done} of {of} parameters"),
        )
    return replace(
        found,
        dtype=dtype,
        results=results,
        constants=constants,
        minima=minima,
        n_evaluations=function.n_evaluations,
        notes=(
            (f"a cast to a narrow type at {casts[0]} makes finite differences less precise",)
            if casts and dtype == "float64"
            else ()
        ),
    )


def _sort(
    subject: Subject, names: frozenset[str], backward: BackwardTrace, function: ScalarFunction
) -> tuple[frozenset[str], frozenset[str], list[TensorGradient]]:
    """Sort the parameters: without effect, at a minimum, to compare with finite differences."""
    constants, minima, tensors = set(), set(), []
    for name, gradient in backward.gradients.items():
        parameter = subject.parameters[name]
        dense = gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient
        if dense is None or not bool(dense.isfinite().all()):
            continue
        if not parameter.data.is_contiguous():
            parameter.data = parameter.data.contiguous()
        if dense.is_complex():
            # Real and imaginary parts are two real weights; torch returns both slopes as one complex number.
            parts = torch.view_as_real(parameter.data), torch.view_as_real(dense.resolve_conj())
            tensors += [TensorGradient(name, *parts)] if name in names else []
            continue
        if _is_constant(parameter, dense, backward, function):
            constants.add(name)
        elif name in names:
            tensors.append(TensorGradient(name, parameter, dense, _padding_rows(parameter, subject.model)))
        elif _is_minimum(parameter, dense, function):
            minima.add(name)
    return frozenset(constants), frozenset(minima), tensors


def _padding_rows(parameter: nn.Parameter, model: nn.Module) -> tuple[int, ...]:
    """List the padding rows of an embedding, which get no gradient even if they are used."""
    return tuple(
        module.padding_idx
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module.weight is parameter and module.padding_idx is not None
    )


_CANCELED = 1e-10
"""A gradient smaller than this share of the gradient that arrives at the readers of its parameter has canceled."""


def _is_constant(
    parameter: nn.Parameter, gradient: torch.Tensor, backward: BackwardTrace, function: ScalarFunction
) -> bool:
    """Return whether a bias has no effect: the gradients that arrive cancel, and the loss does not move with it."""
    readers = [node for node, _ in backward.readers_of(parameter)]
    given = (backward.arriving[node].largest or 0.0 for node in readers if node in backward.arriving)
    arriving = max(given, default=0.0)
    if parameter.ndim > 1 or not arriving or float(gradient.abs().max()) > _CANCELED * arriving:
        return False
    if any("Mul" in type(node).__name__ for node in readers):
        return False
    moved = TensorGradient("", parameter, gradient)
    generator = torch.Generator().manual_seed(0)
    values = [function.at([Direction.random(moved, generator)], step) for step in (0.1, 1.0)]
    return all(abs(value - function.base) <= 1e-9 * abs(function.base) + 4 * function.noise for value in values)


def _is_minimum(parameter: nn.Parameter, gradient: torch.Tensor, function: ScalarFunction) -> bool:
    """Return whether the loss has a minimum or a maximum here: it changes with the square of a step."""
    way = Direction.random(TensorGradient("", parameter, gradient), torch.Generator().manual_seed(0))
    for side in (1e-3, -1e-3):
        far, near = (function.at([way], step) - function.base for step in (side, side / 2))
        if abs(far) <= 100 * function.noise or not 0.2 < near / far < 0.3:
            return False
    return True
