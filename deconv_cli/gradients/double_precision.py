"""The comparison with finite differences, in double precision where the model runs in it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from deconv_cli.errors import DeconvError
from deconv_cli.gradients.evidence import DoubleEvidence
from deconv_cli.gradients.finite_differences.directional import Comparison, Outcome
from deconv_cli.gradients.finite_differences.scalar_function import Direction, ScalarFunction, TensorGradient
from deconv_cli.gradients.finite_differences.search import compare_tensors
from deconv_cli.gradients.gradient_report import first_line
from deconv_cli.gradients.handwritten import WrongInput, check_functions
from deconv_cli.gradients.recurrence.time_series import TimeSeries, series_of_loops
from deconv_cli.gradients.recurrence.unrolled_layers import series_of_layers
from deconv_cli.gradients.second_order import compare_second_derivatives
from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.tracing.backward_trace import BackwardTrace, trace_backward
from deconv_cli.gradients.tracing.forward_trace import ForwardTrace
from deconv_cli.gradients.tracing.interception import trace_forward

_DOUBLE = 2.3e-16
_SINGLE = 1.2e-7
_CANCELED = 1e-10
"""A gradient so many times smaller than what comes up to its parameter has canceled."""

_FUNCTIONS_SHARE = 0.4
"""Part of the time that hand-written backwards may take."""

_NARROW = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(eq=False)
class DoubleGatherer:
    """Gathers the evidence that takes many forward passes.

    Attributes:
        subject: what is checked.
        names: parameters whose gradient is finite and not zero.
        budget: seconds.
        second_order: also compare second derivatives.
        on_progress: called with what is being done.
        wrong_inputs: hand-written backwards with a wrong gradient; filled in.
        notes: what was assumed; filled in.
        not_checked: what was left out; filled in.
    """

    subject: Subject
    names: frozenset[str]
    budget: float
    second_order: bool
    on_progress: Callable[[str], None]
    wrong_inputs: list[WrongInput] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)

    def check_functions_on_whole_batch(self) -> None:
        """Check hand-written backwards before the batch is narrowed: a fault may lie in how samples are summed."""
        self.on_progress("checking hand-written backwards")
        with contextlib.suppress(RuntimeError), self.subject.in_double():
            self._check_functions(trace_forward(self.subject), time.monotonic() + _FUNCTIONS_SHARE * self.budget)

    def gather(self) -> DoubleEvidence | None:
        """Compare with finite differences; None where no gradient can be taken."""
        deadline = time.monotonic() + self.budget
        self.on_progress("comparing with finite differences")
        try:
            with self.subject.in_double():
                forward = trace_forward(self.subject)
                if _is_narrow(forward) and forward.log.casts and forward.reached:
                    where = forward.log.casts[0]
                    self.notes.append(f"a cast to a narrow type at {where} makes finite differences less sharp")
                return self._compare(forward, "float64", deadline)
        except DeconvError:
            raise
        except RuntimeError as error:
            if _is_out_of_memory(error):
                raise
            dtype = str(next(iter(self.subject.parameters.values())).dtype).removeprefix("torch.")
            self.notes.append(
                f"the model does not run in float64 ({first_line(error)}); finite differences were taken in {dtype}, "
                "which is less sharp"
            )
            return self._compare(trace_forward(self.subject), dtype, deadline)

    def _compare(self, forward: ForwardTrace, dtype: str, deadline: float) -> DoubleEvidence | None:
        if not forward.reached:
            return None
        backward = trace_backward(forward.loss, self.subject.trainable, keep_graph=True)
        if backward.error is not None:
            return None
        self.on_progress("checking hand-written backwards")
        self._check_functions(forward, time.monotonic() + _FUNCTIONS_SHARE * (deadline - time.monotonic()))
        series = self._through_time(forward, backward)
        epsilon = _SINGLE if dtype != "float64" or _is_narrow(forward) else _DOUBLE
        function = ScalarFunction(self.subject.evaluator(), epsilon, deadline)
        constants, tensors = self._sort(_dense_gradients(backward), backward, function)
        self.on_progress("comparing with finite differences")
        results = compare_tensors(
            function,
            tensors,
            seed=self.subject.seed,
            on_progress=lambda done, of: self.on_progress(f"finite differences: {done} of {of} parameters"),
        )
        return DoubleEvidence(
            dtype=dtype,
            forward=forward,
            backward=backward,
            results=results,
            second=self._second_derivatives(results, epsilon),
            constants=constants,
            series=tuple(series),
            n_evaluations=function.n_evaluations,
        )

    def _check_functions(self, forward: ForwardTrace, deadline: float) -> None:
        wrong, unchecked = check_functions(forward, deadline=deadline)
        self.not_checked.extend(sentence for sentence in unchecked if sentence not in self.not_checked)
        known = {(item.location, item.name) for item in self.wrong_inputs}
        self.wrong_inputs.extend(item for item in wrong if (item.location, item.name) not in known)

    def _through_time(self, forward: ForwardTrace, backward: BackwardTrace) -> list[TimeSeries]:
        try:
            return [*series_of_layers(self.subject), *series_of_loops(forward, backward)]
        except RuntimeError as error:
            self.not_checked.append(f"gradients through time: {first_line(error)}")
            return []

    def _sort(
        self, gradients: dict[str, torch.Tensor], backward: BackwardTrace, function: ScalarFunction
    ) -> tuple[frozenset[str], list[TensorGradient]]:
        """Sort the parameters into those that cannot matter, and those to compare with finite differences."""
        constants, tensors = set(), []
        for name, gradient in gradients.items():
            parameter = self.subject.parameters[name]
            if not parameter.data.is_contiguous():
                parameter.data = parameter.data.contiguous()
            if _is_constant(parameter, gradient, backward, function):
                constants.add(name)
            elif name in self.names:
                left_out = _padding_rows(parameter, self.subject.model)
                tensors.append(TensorGradient(name, parameter, gradient, left_out))
        return frozenset(constants), tensors

    def _second_derivatives(
        self, results: dict[str, Comparison | None], epsilon: float
    ) -> dict[str, Comparison | None]:
        if not self.second_order:
            return {}
        self.on_progress("comparing second derivatives")
        blamed = {name for item in self.wrong_inputs for name in item.parameters}
        agreeing = [name for name, found in results.items() if found is not None and found.outcome is Outcome.AGREES]
        names = [name for name in agreeing if name not in blamed]
        second, not_checked = compare_second_derivatives(self.subject, names, epsilon, self.budget / 2)
        self.not_checked.extend(not_checked)
        self.not_checked.extend(
            f"{name}: its second derivative could not be compared sharply"
            for name, found in second.items()
            if found is None or (found.outcome is Outcome.UNSURE and not _is_flat(found))
        )
        return second


def _dense_gradients(backward: BackwardTrace) -> dict[str, torch.Tensor]:
    """Make dense the gradients that finite differences can be taken of: real and finite ones."""
    given = {name: gradient for name, gradient in backward.gradients.items() if gradient is not None}
    dense = {name: gradient.to_dense() if gradient.is_sparse else gradient for name, gradient in given.items()}
    return {name: g for name, g in dense.items() if not g.is_complex() and bool(g.isfinite().all())}


def _is_constant(
    parameter: nn.Parameter, gradient: torch.Tensor, backward: BackwardTrace, function: ScalarFunction
) -> bool:
    """Return whether a bias cannot matter: gradients come up to it and cancel, and the loss does not move with it."""
    readers = backward.readers_of(parameter)
    magnitudes = [backward.arriving[node].largest or 0.0 for node, _ in readers if node in backward.arriving]
    arriving = max(magnitudes, default=0.0)
    if parameter.ndim > 1 or not arriving or float(gradient.abs().max()) > _CANCELED * arriving:
        return False
    if any("Mul" in type(node).__name__ for node, _ in readers):
        return False
    moved = TensorGradient("", parameter, gradient)
    generator = torch.Generator().manual_seed(0)
    values = [function.at([Direction.random(moved, generator)], step) for step in (0.1, 1.0)]
    return all(abs(value - function.base) <= 1e-9 * abs(function.base) + 4 * function.noise for value in values)


def _padding_rows(parameter: nn.Parameter, model: nn.Module) -> tuple[int, ...]:
    """List the rows of an embedding that stand for padding and get no gradient, whatever else they are used for."""
    return tuple(
        module.padding_idx
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module.weight is parameter and module.padding_idx is not None
    )


def _is_flat(found: Comparison) -> bool:
    """Return whether a second derivative is zero on both sides, of which no relative error can be told."""
    is_zero = found.autograd == 0 and not math.isfinite(found.resolution)
    return is_zero and abs(found.numeric) <= 5 * found.error_bar


def _is_narrow(forward: ForwardTrace) -> bool:
    return bool(forward.log.casts) or forward.loss.dtype in _NARROW


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
