"""Follow which parameters reach which tensors by value and by gradient, from operation to operation.

Each tensor carries two sets of parameters: those whose value reached it, and those that autograd can still reach from
it. An operation that has a parameter in the second set of its inputs but not of its output detaches it. The first set
is carried along; the second one is read from autograd's own graph, so it is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from deconv_cli.gradients.nested_tensors import NARROW, storage_key, tensors_in
from deconv_cli.gradients.subject import Subject, as_scalar
from deconv_cli.gradients.tracing.backward_trace import AutogradGraph
from deconv_cli.gradients.tracing.code_location import CodeLocation, Locator, Operation
from deconv_cli.gradients.tracing.forward_trace import (
    Detachment,
    Flow,
    ForwardTrace,
    InPlaceWrite,
)
from deconv_cli.gradients.tracing.operations import (
    DETACHING,
    LIKE_ANOTHER,
    ONE_FOR_EACH,
    OUTSIDE_USES,
    PAST_AUTOGRAD,
    RANDOM,
    label_of,
    reads_values,
)


@dataclass(frozen=True, eq=False)
class _Step:
    """An operation that ran: the flow of its inputs, what autograd reaches from them, and parameters read in hiding."""

    name: str
    operation: Operation
    flow: Flow
    reachable: int
    hidden: int = 0


class FlowTracker:
    """Follows the operations of one forward pass.

    Args:
        subject: the model that runs.
        keep_tensors: keep the tensors of every operation in the trace.

    Attributes:
        suspended: above zero inside a hand-written Function, whose operations are not followed.
    """

    def __init__(self, subject: Subject, *, keep_tensors: bool) -> None:
        self.bits = {id(parameter): 1 << n for n, parameter in enumerate(subject.parameters.values())}
        self._bits_by_storage = {storage_key(p): self.bits[id(p)] for p in subject.parameters.values()}
        self.locator = Locator(subject.model)
        self.graph = AutogradGraph(self.bits)
        self.trace = ForwardTrace(tuple(subject.parameters), self.graph)
        # A recorded pass does not run operations again that did not contribute to its loss.
        for name, location in getattr(subject.model, "read_elsewhere", {}).items():
            bit = self.bits[id(subject.parameters[name])]
            self.trace.used |= bit
            self.trace.last_use[bit] = location
        self.suspended = 0
        self._keep_tensors = keep_tensors
        self._flows: dict[int, tuple[torch.Tensor, Flow]] = {}
        self._storages: dict[int, Flow] = {}
        self._past_autograd: set[int] = set()
        self._read_inside = 0
        self._switch: CodeLocation | None = None
        self._is_library_switch = False

    def result(self, loss: Any) -> ForwardTrace:  # noqa: ANN401  whatever the loss gives
        """Return the trace, once the loss exists."""
        trace = self.trace
        if isinstance(loss, torch.Tensor):
            trace.flow, trace.reached = self.flow_of(loss), self.graph.parameters_of(loss)
        trace.loss = as_scalar(loss)
        return trace

    def flow_of(self, tensor: torch.Tensor) -> Flow:
        """Find the flow of a tensor; if nothing saw the tensor being made, its graph and its storage tell."""
        flow = Flow(self.bits.get(id(tensor), 0))
        known = self._flows.get(id(tensor))
        if known is not None:
            flow.merge(known[1])
        elif tensor.grad_fn is not None:
            flow.sources |= self.graph.parameters_of(tensor)
        stored = self._storages.get(storage_key(tensor))
        if stored is not None:
            flow.merge(stored)
        return flow

    def follow_gradient_mode(self, *, is_enabled: bool) -> None:
        """Follow that gradients are switched off or on again."""
        if is_enabled:
            self._switch = None
        elif self._switch is None:
            self._switch, self._is_library_switch = self.locator.here(), self.locator.runs_library()

    def count_write(self, tensor: torch.Tensor, location: CodeLocation) -> None:
        """Note a write to a tensor that is a parameter or shares its memory."""
        bit = self._bits_by_storage.get(storage_key(tensor))
        if bit is not None:
            self.trace.parameter_writes.setdefault(bit, location)

    def follow_wrapping(self, data: torch.Tensor, parameter: torch.Tensor) -> None:
        """Follow a tensor that becomes a new parameter, with its value but without its history."""
        flow, lost = self.flow_of(data), self.graph.parameters_of(data)
        if flow.sources:
            label, location = label_of("nn.Parameter"), self.locator.here()
            self._detach(flow, Detachment("nn.Parameter", label, location, lost))
            self._keep(parameter, flow)
            self.trace.wrapped.append(parameter)

    def _detach(self, flow: Flow, detachment: Detachment) -> None:
        flow.detachments[len(self.trace.detachments)] = detachment.lost
        self.trace.detachments.append(detachment)

    def count_checkpoint(self, result: Any) -> None:  # noqa: ANN401  whatever the checkpoint gives
        """Count the parameters inside a reentrant checkpoint as reached, since its node passes gradients to them."""
        for leaf in tensors_in(result):
            if leaf.grad_fn is not None:
                self.graph.add_parameters(leaf.grad_fn, self._read_inside)

    def observe(
        self,
        function: Any,  # noqa: ANN401  torch's functions, methods and attributes have no one type
        name: str,
        tensors: list[torch.Tensor],
        call: Callable[[], Any],
        *,
        is_derivative: bool = False,
    ) -> Any:  # noqa: ANN401  whatever the operation gives
        """Run one operation with tensors among its arguments, and record its effect on values and gradients.

        `is_derivative` marks a derivative that can be differentiated again.
        """
        if self.suspended:
            result = call()
            self._mark_used(tensors, None)
            self.trace.detaches_unseen |= name in DETACHING
            return result
        reads = reads_values(function, name)
        # Functions such as `to` and `view_as` read only the type or the shape of their second tensor.
        flow, reachable = self._joined((tensors[:1] if name in LIKE_ANOTHER else tensors) if reads else ())
        # An in-place operation gives its tensor a new history, so its state before is kept.
        before = [(0 if t.is_inference() else t._version, _maker(t)) for t in tensors]
        self._read_inside, outside = 0, self._read_inside
        result = call()
        hidden = self._read_inside & ~reachable  # parameters that a Function reads besides its arguments
        self._read_inside = outside
        flow.sources |= hidden
        location, outputs = self.locator.here(), tensors_in(result)
        if flow.detachments and any(id(tensor) in self.bits for tensor in tensors):
            self.trace.read_on |= flow.detachments.keys()
        self.trace.takes_likelihood |= bool(outputs and flow.detachments) and "log_prob(" in location.code
        operation = Operation(label_of(name, outputs[0] if outputs else None), location)
        if reads:
            self._mark_used(tensors, location)
            step = _Step(name, operation, flow, reachable | hidden, hidden)
            if name in ONE_FOR_EACH and len(outputs) == len(tensors):
                for tensor, output in zip(tensors, outputs, strict=True):
                    self._record_output(_Step(name, operation, *self._joined([tensor])), output)
            else:
                self._record_outputs(step, outputs, is_derivative=is_derivative)
        for tensor, (version, maker) in zip(tensors, before, strict=True):
            if not tensor.is_inference() and tensor._version != version:
                self._record_write(tensor, maker, flow, reachable, operation)
        if self._keep_tensors:
            with torch._C.DisableTorchFunction():  # a later write may change an output, as with `.data`
                self.trace.computed.append((name, operation, tensors, [o.detach().clone() for o in outputs]))
        if name not in RANDOM and any(tensor.dtype is torch.float64 for tensor in tensors):
            self.trace.casts += [location for output in outputs if output.dtype in NARROW]
        return result

    def _joined(self, tensors: Iterable[torch.Tensor]) -> tuple[Flow, int]:
        """Join the flows of tensors, and the parameters that autograd reaches from them."""
        flow, reachable = Flow(), 0
        for tensor in tensors:
            flow.merge(self.flow_of(tensor))
            reachable |= self.graph.parameters_of(tensor)
        return flow, reachable

    def _mark_used(self, tensors: list[torch.Tensor], location: CodeLocation | None) -> None:
        for tensor in tensors:
            bit = self.bits.get(id(tensor), 0)
            self.trace.used |= bit
            if bit and self.suspended and tensor.requires_grad:
                self._read_inside |= bit
            if bit and location is not None:
                self.trace.last_use[bit] = location

    def _record_outputs(self, step: _Step, outputs: list[torch.Tensor], *, is_derivative: bool) -> None:
        operation, flow = step.operation, step.flow
        if not outputs and step.name in OUTSIDE_USES and flow.sources:
            use = Detachment(step.name, operation.label, operation.location, flow.sources)
            self.trace.outside_uses.append(replace(use, reached=step.reachable, before=tuple(sorted(flow.detachments))))
        for output in outputs:
            self._record_output(self._without_shifts(output, step) if is_derivative else step, output)

    def _without_shifts(self, output: torch.Tensor, step: _Step) -> _Step:
        """Drop the parameters that a derivative does not depend on from its flow."""
        remaining = self.graph.parameters_of(output)
        for bit in self.bits.values():
            if bit & step.reachable & ~remaining:
                self.trace.shifted.setdefault(bit, step.operation.location)
        lost_before = 0
        for lost in step.flow.detachments.values():
            lost_before |= lost
        flow = Flow(step.flow.sources & (remaining | lost_before), dict(step.flow.detachments))
        return replace(step, flow=flow, reachable=step.reachable & remaining)

    def _record_output(self, step: _Step, output: torch.Tensor) -> None:
        self.graph.record_new_nodes(output, step.operation)
        remaining = self.graph.parameters_of(output)
        if step.name in DETACHING and step.flow.detachments:
            self.trace.detaches_unseen = True
        flow = Flow(step.flow.sources, {known: lost & ~remaining for known, lost in step.flow.detachments.items()})
        lost = step.reachable & ~remaining
        if lost:
            by_mode = not torch.is_grad_enabled()
            is_switched = by_mode and self._switch is not None
            detachment = Detachment(
                step.name,
                step.operation.label,
                step.operation.location,
                lost,
                by_mode=by_mode,
                is_hidden=bool(lost & step.hidden),
                switch=self._switch if by_mode else None,
                by_library=self._is_library_switch if is_switched else self.locator.runs_library(),
            )
            self._detach(flow, detachment)
        if id(output) in self.bits:
            if lost:  # another parameter is written to, as the average of one that is trained
                self._storages.setdefault(storage_key(output), Flow()).merge(flow)
            return
        self._keep(output, flow)
        if step.name in PAST_AUTOGRAD:
            self._past_autograd.add(id(output))
        if output.grad_fn is not None:
            self.trace.made_by.add(step.name)

    def _record_write(
        self, tensor: torch.Tensor, maker: str | None, inputs: Flow, reachable: int, operation: Operation
    ) -> None:
        flow = self._storages.setdefault(storage_key(tensor), Flow())
        flow.merge(inputs)
        flow.merge(self.flow_of(tensor))
        is_unseen = id(tensor) in self._past_autograd and bool(flow.sources)
        if reachable and is_unseen:
            # Other tensors of this memory get the values without a history.
            label, location = label_of("data"), operation.location
            self._detach(flow, Detachment("data", label, location, reachable))
        self.count_write(tensor, operation.location)
        self.trace.writes.append(InPlaceWrite(operation, tuple(tensor.shape), maker, tensor._version, is_unseen))
        self.graph.record_new_nodes(tensor, operation)
        if id(tensor) not in self.bits:
            self._keep(tensor, flow)

    def _keep(self, tensor: torch.Tensor, flow: Flow) -> None:
        # The tensor is held, so that its id stays its own.
        self._flows[id(tensor)] = (tensor, flow)


def _maker(tensor: torch.Tensor) -> str | None:
    return None if tensor.grad_fn is None else type(tensor.grad_fn).__name__
