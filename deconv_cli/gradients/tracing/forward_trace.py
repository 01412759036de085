"""The record of one forward pass. A set of parameters is a whole number here, with a bit for each parameter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from deconv_cli.gradients.tracing.backward_trace import AutogradGraph, Node
from deconv_cli.gradients.tracing.code_location import CodeLocation, Operation
from deconv_cli.gradients.tracing.operations import DETACHING, DETACHING_INSIDE, LossCall


@dataclass(frozen=True)
class Detachment:
    """An operation that gradients enter and do not leave.

    Attributes:
        lost: parameters that it cuts off.
        by_mode: gradients are switched off around it (`no_grad`, `inference_mode`), on the line `switch` if known.
        by_library: an installed library detaches, and not the user's own code.
        reached: for a plain value, the parameters that autograd reaches from the tensor.
        before: indices of the detachments on the way to this one.
        is_hidden: a Function reads the parameters without having them among its arguments.
    """

    name: str
    label: str
    location: CodeLocation
    lost: int
    by_mode: bool = False
    reached: int = 0
    before: tuple[int, ...] = ()
    is_hidden: bool = False
    switch: CodeLocation | None = None
    by_library: bool = False

    @property
    def is_draw(self) -> bool:
        """Whether this is a draw from a distribution of torch, which detaches by design."""
        return self.by_mode and self.by_library and ".sample(" in self.location.code

    @property
    def is_deliberate(self) -> bool:
        """True if the code detaches on purpose; finite differences hold the value constant."""
        return self.by_mode or self.name in DETACHING


@dataclass(frozen=True)
class InPlaceWrite:
    """A tensor that was overwritten.

    Attributes:
        node: name of the autograd node that made the tensor before, or None.
        version: count of writes, this one included.
        is_unseen: autograd does not see the write, which goes through `.data` or `.detach()`.
    """

    operation: Operation
    shape: tuple[int, ...]
    node: str | None
    version: int
    is_unseen: bool = False


@dataclass(frozen=True, eq=False)
class FunctionCall:
    """A call of a hand-written `torch.autograd.Function`, with copies of its arguments.

    Attributes:
        needs: whether each tensor among them required a gradient.
        node: its node in the graph, None if its output required no gradient.
    """

    function: type[torch.autograd.Function]
    arguments: tuple[Any, ...]
    needs: tuple[bool, ...]
    node: Node
    location: CodeLocation


@dataclass
class Flow:
    """The parameters behind a tensor.

    Attributes:
        sources: parameters whose value reached it.
        detachments: by the index of each detachment on the way, the parameters that it cuts off from this tensor.
    """

    sources: int = 0
    detachments: dict[int, int] = field(default_factory=dict)

    def merge(self, other: Flow) -> None:
        """Add the flow of another tensor."""
        self.sources |= other.sources
        for index, lost in other.detachments.items():
            self.detachments[index] = self.detachments.get(index, 0) | lost


@dataclass(eq=False)
class ForwardTrace:
    """The operations of one forward pass, in order, with its output and its loss.

    Attributes:
        names: of the parameters, in the order of their bits.
        reached: parameters that autograd reaches from the loss.
        used: parameters that some operation read; `last_use` holds the last line for each.
        detachments: operations that gradients do not leave.
        detaches_unseen: code detached a tensor on purpose that was partly cut off already, or inside a checkpoint.
        read_on: indices of the `detachments` whose values a layer with weights reads.
        takes_likelihood: the code computes the log_prob of a draw, as in a policy gradient.
        outside_uses: operations at which a tensor became a number, a list or an array.
        hooks: lines that put a hook on a tensor which changed a gradient, once backward has run.
        shifted: parameters on which a derivative by torch.autograd.grad no longer depends, with the line.
        differentiated_by: leaves that torch.autograd.grad differentiated by.
        wrapped: leaves that forward made of the values of other tensors.
        made_by: names of the operations that made a tensor with a gradient.
        computed: the operations with their names, their inputs and copies of their outputs, if they are kept.
        casts: lines on which float64 became a narrower type.
        loss_calls: losses that get the wrong kind of input.
        parameter_writes: the lines that write to parameters, by their bits.
    """

    names: tuple[str, ...]
    graph: AutogradGraph
    loss: torch.Tensor = field(init=False)
    flow: Flow = field(default_factory=Flow)
    reached: int = 0
    used: int = 0
    last_use: dict[int, CodeLocation] = field(default_factory=dict)
    detachments: list[Detachment] = field(default_factory=list)
    detaches_unseen: bool = False
    read_on: set[int] = field(default_factory=set)
    takes_likelihood: bool = False
    outside_uses: list[Detachment] = field(default_factory=list)
    writes: list[InPlaceWrite] = field(default_factory=list)
    calls: list[FunctionCall] = field(default_factory=list)
    hooks: list[CodeLocation] = field(default_factory=list)
    shifted: dict[int, CodeLocation] = field(default_factory=dict)
    differentiated_by: list[torch.Tensor] = field(default_factory=list)
    wrapped: list[torch.Tensor] = field(default_factory=list)
    made_by: set[str] = field(default_factory=set)
    computed: list[tuple[str, Operation, list[torch.Tensor], list[torch.Tensor]]] = field(default_factory=list)
    random: list[Operation] = field(default_factory=list)
    casts: list[CodeLocation] = field(default_factory=list)
    loss_calls: list[LossCall] = field(default_factory=list)
    parameter_writes: dict[int, CodeLocation] = field(default_factory=dict)

    @property
    def is_detached_on_purpose(self) -> bool:
        """Whether values on the way to the loss are detached on purpose, so finite differences keep them constant."""
        detachments = (self.detachments[index] for index in self.flow.detachments)
        is_hidden = self.detaches_unseen or DETACHING_INSIDE & self.made_by
        return bool(is_hidden) or any(found.is_deliberate for found in detachments)

    def bit(self, name: str) -> int:
        """Return the bit of a parameter."""
        return 1 << self.names.index(name)
