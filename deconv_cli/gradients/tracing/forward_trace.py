"""What one forward pass of a model shows. A set of parameters is a whole number here, with a bit for each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from deconv_cli.gradients.tracing.backward_trace import AutogradGraph, Node
from deconv_cli.gradients.tracing.code_location import CodeLocation
from deconv_cli.gradients.tracing.operations import DETACHING, LossCall


@dataclass(frozen=True)
class Operation:
    """An operation as code writes it, and its line."""

    label: str
    location: CodeLocation

    @property
    def bare_name(self) -> str:
        """The name without dots, underscores and brackets."""
        return self.label.removesuffix("(...)").strip("_.").removesuffix("()")


@dataclass(frozen=True)
class Detachment:
    """An operation that gradients enter and do not leave.

    Attributes:
        lost: parameters that are cut off.
        by_mode: gradients were switched off around it (`no_grad`, `inference_mode`), at `switch` where that was seen.
        by_library: an installed library does it, and not the user's own code.
        n_elements: of what was cut off.
        reached: of an operation that gives a plain value, the parameters that autograd reached from its input.
        before: detachments that lie on the way to this one, by their index.
        is_hidden: the parameters are read inside a Function without being among its arguments.
    """

    name: str
    label: str
    location: CodeLocation
    lost: int
    by_mode: bool = False
    n_elements: int = 0
    reached: int = 0
    before: tuple[int, ...] = ()
    is_hidden: bool = False
    switch: CodeLocation | None = None
    by_library: bool = False

    @property
    def is_draw(self) -> bool:
        """Whether a distribution of torch draws here, which detaches by design."""
        return self.by_mode and self.by_library and ".sample(" in self.location.code

    @property
    def is_deliberate(self) -> bool:
        """True for what is written to detach and for nothing else; finite differences hold it constant."""
        return self.by_mode or self.name in DETACHING


@dataclass(frozen=True)
class InPlaceWrite:
    """A tensor that was overwritten.

    Attributes:
        node: name of the autograd node that had made the tensor before, or None.
        version: count of writes after this one.
    """

    operation: Operation
    shape: tuple[int, ...]
    node: str | None
    version: int


@dataclass(frozen=True, eq=False)
class FunctionCall:
    """A call of a hand-written `torch.autograd.Function`, with copies of its arguments.

    Attributes:
        needs: which of the tensors among them required a gradient.
        node: its node in the graph, None where its output required no gradient.
    """

    function: type[torch.autograd.Function]
    arguments: tuple[Any, ...]
    needs: tuple[bool, ...]
    node: Node
    location: CodeLocation


@dataclass(eq=False)
class TensorHook:
    """A hook that forward put on a tensor with `parameters` behind it; what it `changes` is known after backward."""

    location: CodeLocation
    parameters: int
    changes: bool = False

    def watched(self, hook: Callable[..., Any]) -> Callable[[torch.Tensor], Any]:
        """Return a hook that does the same, and notes whether the gradient comes out as it went in."""

        @functools.wraps(hook)
        def watching(gradient: torch.Tensor) -> Any:  # noqa: ANN401  what the user's hook gives
            before = gradient.detach().clone()
            result = hook(gradient)
            after = gradient if result is None else result
            is_same = isinstance(after, torch.Tensor) and after.shape == before.shape and torch.equal(after, before)
            self.changes = self.changes or not is_same
            return result

        return watching


@dataclass(frozen=True, eq=False)
class TracedTensor:
    """A tensor that an operation made; `index` counts the outputs of the operation."""

    name: str
    operation: Operation
    tensor: torch.Tensor
    index: int


@dataclass
class Flow:
    """What a tensor carries.

    Attributes:
        sources: parameters whose value reached it.
        detachments: for the index of each detachment on the way the parameters that it keeps from this tensor.
    """

    sources: int = 0
    detachments: dict[int, int] = field(default_factory=dict)

    def merge(self, other: Flow) -> None:
        """Add what another tensor carries."""
        self.sources |= other.sources
        for index, lost in other.detachments.items():
            self.detachments[index] = self.detachments.get(index, 0) | lost


@dataclass(eq=False)
class OperationLog:
    """What the operations of a forward pass did, in order.

    Attributes:
        used: parameters that some operation read, `last_use` where each was read last.
        detachments: operations that gradients do not leave.
        detaches_again: something was detached on purpose that something else had cut off already, at least in part.
        read_on: those of `detachments`, by their index, whose values a layer with weights of its own reads.
        takes_likelihood: the log_prob of something drawn is taken, as for a policy gradient.
        outside_uses: those at which a tensor became a number, a list or an array.
        calls: hand-written Functions.
        shifted: parameters that torch.autograd.grad left out of a derivative that can be differentiated again, with the
            line: where a derivative is all that is kept, such a parameter shifts what was differentiated, or moves it
            in steps.
        differentiated_by: leaves that torch.autograd.grad was given to differentiate by.
        wrapped: leaves that forward made of the values of other tensors.
        names: of the operations that gave a tensor with a gradient.
        tensors: all tensors that were made, where they are kept; `differentiable` those that carry a gradient, until
            they are let go of.
        random: operations that draw random numbers.
        origins: operations whose output is not finite though their inputs are, masks left out.
        nan_origins: operations that give NaN though their inputs, which may be infinite, hold none.
        casts: lines on which float64 became a narrower type.
        loss_calls: losses that are given something other than what they are for.
        parameter_writes: where parameters were written to, by their bits.
    """

    used: int = 0
    last_use: dict[int, CodeLocation] = field(default_factory=dict)
    detachments: list[Detachment] = field(default_factory=list)
    detaches_again: bool = False
    read_on: set[int] = field(default_factory=set)
    takes_likelihood: bool = False
    outside_uses: list[Detachment] = field(default_factory=list)
    writes: list[InPlaceWrite] = field(default_factory=list)
    calls: list[FunctionCall] = field(default_factory=list)
    hooks: list[TensorHook] = field(default_factory=list)
    shifted: dict[int, CodeLocation] = field(default_factory=dict)
    differentiated_by: list[torch.Tensor] = field(default_factory=list)
    wrapped: list[torch.Tensor] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    tensors: list[TracedTensor] = field(default_factory=list)
    differentiable: list[TracedTensor] = field(default_factory=list)
    random: list[Operation] = field(default_factory=list)
    origins: list[Operation] = field(default_factory=list)
    nan_origins: list[Operation] = field(default_factory=list)
    casts: list[CodeLocation] = field(default_factory=list)
    loss_calls: list[LossCall] = field(default_factory=list)
    parameter_writes: dict[int, CodeLocation] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ForwardTrace:
    """One forward pass.

    Attributes:
        names: parameters; the bit of each is its index here.
        loss: what the loss function gave, as a scalar tensor.
        flow: what the loss carries.
        reached: parameters that autograd reaches from the loss.
    """

    names: tuple[str, ...]
    output: Any
    loss: torch.Tensor
    flow: Flow
    reached: int
    log: OperationLog
    graph: AutogradGraph

    def bit(self, name: str) -> int:
        """Return the bit of a parameter."""
        return 1 << self.names.index(name)

    def operations(self, nodes: Iterable[Node]) -> list[Operation]:
        """Name the operations that made nodes of the graph."""
        return [Operation(self.graph.label_of(node), self.graph.location_of(node)) for node in nodes]
