"""One forward pass, watched: which parameters reach which tensors by value and by gradient, and who cuts them off.

Each tensor carries two sets of parameters: those whose value reached it, and those that autograd can still reach from
it. An operation with a parameter in the second set of its inputs but not of its output is a cut. The first set is
carried along from operation to operation; the second is read from autograd's own graph, so it is exact.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.autograd.function import _SingleLevelFunction
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointFunction

from deconv_cli.gradients.operations import LIKE_ANOTHER, NUMBERS, RANDOM, plain_name, reads_values, spoken
from deconv_cli.gradients.places import Locator
from deconv_cli.gradients.subject import Subject, as_scalar
from deconv_cli.gradients.verdicts import Place

Node = Any
"""A node of autograd's graph."""


@dataclass(frozen=True)
class Cut:
    """An operation that gradients enter and do not leave.

    Attributes:
        name: bare name of the operation.
        spoken: as a person would write it.
        place: where it stands.
        lost: parameters that are cut off, a bit each.
        by_mode: gradients were switched off around it (`no_grad`, `inference_mode`).
        n_elements: of what was cut off.
        before: cuts that lie on the way to this one, by their index.
        is_hidden: the parameters are read inside a Function without being among its arguments.
    """

    name: str
    spoken: str
    place: Place
    lost: int
    by_mode: bool
    n_elements: int = 0
    before: tuple[int, ...] = ()
    is_hidden: bool = False


@dataclass(frozen=True)
class InPlaceWrite:
    """A tensor that was overwritten.

    Attributes:
        spoken: the operation.
        place: where it stands.
        shape: of the tensor.
        node: name of the autograd node that had made the tensor before, or None.
        version: count of writes after this one.
    """

    spoken: str
    place: Place
    shape: tuple[int, ...]
    node: str | None
    version: int


@dataclass(frozen=True, eq=False)
class FunctionCall:
    """A call of a hand-written `torch.autograd.Function`.

    Attributes:
        function: its class.
        arguments: copies of what it was called with.
        needs: which of the tensors among them required a gradient.
        node: its node in the graph, None where its output required no gradient.
        place: where it was called.
    """

    function: type[torch.autograd.Function]
    arguments: tuple[Any, ...]
    needs: tuple[bool, ...]
    node: Node
    place: Place


@dataclass(eq=False)
class TensorHook:
    """A hook that forward put on a tensor.

    Attributes:
        place: where the hook is written.
        reach: parameters behind that tensor, a bit each.
        changes: it has changed a gradient in the backward pass of this trace.
    """

    place: Place
    reach: int
    changes: bool = False

    def wrapped(self, hook: Callable[..., Any]) -> Callable[[torch.Tensor], Any]:
        """Give a hook that does the same, and notes whether the gradient comes out as it went in."""

        @functools.wraps(hook)
        def watched(gradient: torch.Tensor) -> Any:  # noqa: ANN401
            before = gradient.detach().clone()
            result = hook(gradient)
            after = gradient if result is None else result
            is_same = isinstance(after, torch.Tensor) and after.shape == before.shape and torch.equal(after, before)
            self.changes = self.changes or not is_same
            return result

        return watched


@dataclass(frozen=True, eq=False)
class Step:
    """A tensor that an operation made; `index` counts the outputs of the operation."""

    name: str
    spoken: str
    place: Place
    tensor: torch.Tensor
    index: int


@dataclass
class Flow:
    """What a tensor carries: parameters by value, cuts on the way, and whom each cut still keeps from this tensor."""

    sources: int = 0
    cuts: dict[int, int] = field(default_factory=dict)

    def merge(self, other: Flow) -> None:
        """Add what another tensor carries."""
        self.sources |= other.sources
        for index, blamed in other.cuts.items():
            self.cuts[index] = self.cuts.get(index, 0) | blamed


@dataclass(eq=False)
class Trace:
    """What one forward pass told.

    Attributes:
        names: parameters; the bit of each is its index here.
        loss: what the loss function gave, as a scalar tensor.
        left_torch: the loss came as a plain number.
        output: what the model gave.
        flow: what the loss carries.
        reached: parameters that autograd reaches from the loss, a bit each.
        used: parameters that some operation read, a bit each.
        last_use: where each parameter was read last.
        cuts: all cuts.
        escapes: cuts where a tensor became a number, a list or an array, with the parameters behind it.
        writes: overwritten tensors.
        calls: hand-written Functions.
        hooks: what forward hooked onto tensors.
        shifted: parameters that torch.autograd.grad left out of a derivative that can be differentiated again, with the
            place: where a derivative is all that is kept, such a parameter shifts what was differentiated, or moves it
            in steps.
        places: where each node of the graph was made.
        spoken: by which operation.
        everything: tensors by operation and line, in order.
        steps: those of them that carry a gradient.
        order: how many steps there were when each node was made.
        random: operations that draw random numbers.
        births: operations whose output is not finite though their inputs are.
        casts: places at which float64 became a narrower type.
    """

    names: list[str]
    loss: torch.Tensor
    left_torch: bool
    output: Any
    flow: Flow
    reached: int
    used: int
    last_use: dict[int, Place]
    cuts: list[Cut]
    escapes: list[Cut]
    writes: list[InPlaceWrite]
    calls: list[FunctionCall]
    hooks: list[TensorHook]
    shifted: dict[int, Place]
    places: dict[Node, Place]
    spoken: dict[Node, str]
    everything: list[Step]
    steps: list[Step]
    order: dict[Node, int]
    random: list[tuple[str, Place]]
    births: list[tuple[str, Place]]
    casts: list[Place]
    mask_of: Callable[[Node], int]

    def bit(self, name: str) -> int:
        """Give the bit of a parameter."""
        return 1 << self.names.index(name)


def trace(subject: Subject, *, find_births: bool = False) -> Trace:
    """Run forward and loss once and watch.

    Args:
        subject: what is run.
        find_births: also look for the operations at which NaN or infinity is born.
    """
    tracer = _Tracer(subject, find_births=find_births)
    with tracer.watching():
        output, loss = subject.run()
    return tracer.result(output, loss)


class _Tracer:
    def __init__(self, subject: Subject, *, find_births: bool) -> None:
        self.names = list(subject.parameters)
        self.bits = {id(parameter): 1 << n for n, parameter in enumerate(subject.parameters.values())}
        self.locator = Locator(subject.model)
        self.find_births = find_births
        self.flows: dict[int, tuple[torch.Tensor, Flow]] = {}
        self.storages: dict[int, Flow] = {}
        self.masks: dict[Node, int] = {}
        self.places: dict[Node, Place] = {}
        self.spoken: dict[Node, str] = {}
        self.cuts: list[Cut] = []
        self.escapes: list[Cut] = []
        self.writes: list[InPlaceWrite] = []
        self.calls: list[FunctionCall] = []
        self.hooks: list[TensorHook] = []
        self.shifted: dict[int, Place] = {}
        self.inside = 0
        self.everything: list[Step] = []
        self.steps: list[Step] = []
        self.order: dict[Node, int] = {}
        self.random: list[tuple[str, Place]] = []
        self.births: list[tuple[str, Place]] = []
        self.casts: list[Place] = []
        self.used = 0
        self.last_use: dict[int, Place] = {}
        self.suspended = 0
        self.constructing = False
        self.subject = subject

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        with (
            self.locator.following(),
            _patched_apply(self),
            _patched_parameter(self),
            _FunctionMode(self),
            _DispatchMode(self),
        ):
            yield

    def result(self, output: Any, loss: Any) -> Trace:  # noqa: ANN401
        scalar = as_scalar(loss)
        tensor = loss if isinstance(loss, torch.Tensor) else None
        flow = self.flow_of(tensor) if tensor is not None else Flow()
        return Trace(
            names=self.names,
            loss=scalar,
            left_torch=tensor is None,
            output=output,
            flow=flow,
            reached=self.gradient_mask(tensor) if tensor is not None else 0,
            used=self.used,
            last_use=self.last_use,
            cuts=self.cuts,
            escapes=self.escapes,
            writes=self.writes,
            calls=self.calls,
            hooks=self.hooks,
            shifted=self.shifted,
            places=self.places,
            spoken=self.spoken,
            everything=self.everything,
            steps=self.steps,
            order=self.order,
            random=self.random,
            births=self.births,
            casts=self.casts,
            mask_of=self.node_mask,
        )

    def node_mask(self, node: Node) -> int:
        """Find the parameters that autograd reaches from a node."""
        return _reach(node, self.masks, self.bits, lambda _: None)

    def gradient_mask(self, tensor: torch.Tensor) -> int:
        """Find the parameters that autograd reaches from a tensor."""
        if tensor.grad_fn is not None:
            return self.node_mask(tensor.grad_fn)
        return self.bits.get(id(tensor), 0) if tensor.requires_grad else 0

    def reach_inside(self, result: Any) -> None:  # noqa: ANN401
        """Count the parameters inside a reentrant checkpoint as reached: its node gives to them past the graph."""
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.grad_fn is not None:
                self.masks[leaf.grad_fn] = self.node_mask(leaf.grad_fn) | self.inside

    def name_new_nodes(self, tensor: torch.Tensor, place: Place, words: str) -> None:
        """Remember where the nodes behind a tensor were made, as far as they are new."""

        def remember(node: Node) -> None:
            self.places[node], self.spoken[node] = place, words
            self.order[node] = len(self.steps)

        if tensor.grad_fn is not None:
            _reach(tensor.grad_fn, self.masks, self.bits, remember)

    def hooked(self, tensor: torch.Tensor, hook: Any) -> tuple[torch.Tensor, Any]:  # noqa: ANN401
        """Follow a hook that is put on a tensor."""
        code = getattr(hook, "__code__", None)
        place = Place(code.co_filename, code.co_firstlineno, code.co_name) if code else self.locator.here()
        self.hooks.append(TensorHook(place, self.gradient_mask(tensor)))
        return tensor, self.hooks[-1].wrapped(hook) if callable(hook) else hook

    def flow_of(self, tensor: torch.Tensor) -> Flow:
        """Find what a tensor carries; one that nobody saw being made is known by its graph or its storage."""
        flow = Flow(self.bits.get(id(tensor), 0))
        known = self.flows.get(id(tensor))
        if known is not None:
            flow.merge(known[1])
        elif tensor.grad_fn is not None:
            flow.sources |= self.gradient_mask(tensor)
        stored = self.storages.get(_storage_key(tensor))
        if stored is not None:
            flow.merge(stored)
        return flow

    def keep(self, tensor: torch.Tensor, flow: Flow) -> None:
        # The tensor is held, so that its id stays its own.
        self.flows[id(tensor)] = (tensor, flow)

    def observe(
        self,
        function: Any,  # noqa: ANN401
        name: str,
        inputs: list[torch.Tensor],
        call: Callable[[], Any],
        *,
        is_derivative: bool = False,
    ) -> Any:  # noqa: ANN401
        """Run one operation, and draw the conclusions.

        Args:
            function: the operation.
            name: its bare name.
            inputs: the tensors among its arguments.
            call: runs it.
            is_derivative: it gives a derivative that can be differentiated again.
        """
        versions = [0 if tensor.is_inference() else tensor._version for tensor in inputs]
        makers = [_maker(tensor) for tensor in inputs]
        reads = reads_values(function, name)
        # Asked before the call, since an in-place operation gives its input a new history.
        carried, reachable = Flow(), 0
        if reads:
            # What a tensor is converted or shaped like gives its type or its shape, and not its values.
            for tensor in inputs[:1] if name in LIKE_ANOTHER else inputs:
                carried.merge(self.flow_of(tensor))
                reachable |= self.gradient_mask(tensor)
        if self.suspended:
            result = call()
            self._mark_used(inputs, None)
            return result
        self.inside, outside = 0, self.inside
        result = call()
        # Parameters that a Function reads without their being among its arguments.
        hidden = self.inside & ~reachable
        carried.sources |= hidden
        reachable |= hidden
        self.inside = outside
        place = self.locator.here()
        if reads:
            self._mark_used(inputs, place)
        outputs = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        words = spoken(name, outputs[0] if outputs else None)
        if not outputs:
            if name in NUMBERS and carried.sources:
                before = tuple(sorted(carried.cuts))
                self.escapes.append(Cut(name, words, place, carried.sources, by_mode=False, before=before))
        elif reads:
            for index, output in enumerate(outputs):
                flow, reach = carried, reachable
                if is_derivative:
                    flow, reach = self._without_shifts(output, carried, reachable, place)
                self._conclude(output, index, flow, reach, hidden, name, words, place)
        for tensor, version, maker in zip(inputs, versions, makers, strict=True):
            if not tensor.is_inference() and tensor._version != version:
                self._written(tensor, carried, maker, words, place)
        if self.find_births:
            self._find_birth(inputs, outputs, words, place)
        if any(tensor.dtype is torch.float64 for tensor in inputs):
            narrow = (torch.float32, torch.float16, torch.bfloat16)
            self.casts += [place for output in outputs if output.dtype in narrow]
        return result

    def _without_shifts(self, output: torch.Tensor, carried: Flow, reachable: int, place: Place) -> tuple[Flow, int]:
        """Take out of the flow, and of what autograd reaches, the parameters that a derivative does not depend on."""
        remaining = self.gradient_mask(output)
        for bit in self.bits.values():
            if bit & reachable & ~remaining:
                self.shifted.setdefault(bit, place)
        cut_before = 0
        for blamed in carried.cuts.values():
            cut_before |= blamed
        return Flow(carried.sources & (remaining | cut_before), dict(carried.cuts)), reachable & remaining

    def _mark_used(self, inputs: list[torch.Tensor], place: Place | None) -> None:
        for tensor in inputs:
            bit = self.bits.get(id(tensor), 0)
            if bit:
                self.used |= bit
                if self.suspended and tensor.requires_grad:
                    self.inside |= bit
                if place is not None:
                    self.last_use[bit] = place

    def _conclude(
        self,
        output: torch.Tensor,
        index: int,
        carried: Flow,
        reachable: int,
        hidden: int,
        name: str,
        words: str,
        place: Place,
    ) -> None:
        self.name_new_nodes(output, place, words)
        if id(output) in self.bits:
            return
        remaining = self.gradient_mask(output)
        flow = Flow(carried.sources, {index: blamed & ~remaining for index, blamed in carried.cuts.items()})
        lost = reachable & ~remaining
        if lost:
            by_mode = not torch.is_grad_enabled()
            flow.cuts[len(self.cuts)] = lost
            is_hidden = bool(lost & hidden)
            self.cuts.append(Cut(name, words, place, lost, by_mode, output.numel(), is_hidden=is_hidden))
        self.keep(output, flow)
        self.everything.append(Step(name, words, place, output, index))
        if output.grad_fn is not None:
            self.steps.append(self.everything[-1])

    def _written(self, tensor: torch.Tensor, carried: Flow, maker: str | None, words: str, place: Place) -> None:
        flow = self.storages.setdefault(_storage_key(tensor), Flow())
        flow.merge(carried)
        self.writes.append(InPlaceWrite(words, place, tuple(tensor.shape), maker, tensor._version))
        self.name_new_nodes(tensor, place, words)
        if id(tensor) not in self.bits:
            self.keep(tensor, flow)

    def _find_birth(self, inputs: list[torch.Tensor], outputs: list[torch.Tensor], words: str, place: Place) -> None:
        if any(not bool(tensor.isfinite().all()) for tensor in inputs if tensor.is_floating_point()):
            return
        if any(not bool(tensor.isfinite().all()) for tensor in outputs if tensor.is_floating_point()):
            self.births.append((words, place))


class _FunctionMode(TorchFunctionMode):
    """Sees every function of torch that Python calls."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: Any = (),  # noqa: ANN401
        kwargs: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Run one function."""
        keywords = kwargs or {}
        name = plain_name(func)
        if name == "detach" and self._tracer.constructing:
            # The one detach that no Python function stands for: the constructor of torch.autograd.Variable.
            name = "Variable"
        if name in RANDOM and not self._tracer.suspended:
            self._tracer.random.append((spoken(name), self._tracer.locator.here()))
        if name == "register_hook" and len(args) == 2 and not self._tracer.suspended:
            args = self._tracer.hooked(*args)
        inputs = [leaf for leaf in pytree.tree_leaves((args, keywords)) if isinstance(leaf, torch.Tensor)]
        if not inputs:
            return func(*args, **keywords)
        is_derivative = func is torch.autograd.grad and bool(keywords.get("create_graph"))
        call = _calling(func, args, keywords)
        return self._tracer.observe(func, name, inputs, call, is_derivative=is_derivative)


def _calling(function: Any, arguments: Any, keywords: dict[str, Any]) -> Callable[[], Any]:  # noqa: ANN401
    return lambda: function(*arguments, **keywords)


class _DispatchMode(TorchDispatchMode):
    """Lets the function mode see what no Python function stands for, such as the constructor of `Variable`."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tracer = tracer

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: Any = (),  # noqa: ANN401
        kwargs: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Pass one operation on."""
        self._tracer.constructing = True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self._tracer.constructing = False


@contextlib.contextmanager
def _patched_apply(tracer: _Tracer) -> Iterator[None]:
    """See calls of hand-written Functions, also through an `apply` that was bound long ago."""

    def traced_apply(cls: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        inputs = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, torch.Tensor)]
        kept = pytree.tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf, args)
        needs = [tensor.requires_grad for tensor in inputs]

        def call() -> Any:  # noqa: ANN401
            tracer.suspended += 1
            try:
                result = super(_SingleLevelFunction, cls).apply(*args, **kwargs)
            finally:
                tracer.suspended -= 1
            if cls is CheckpointFunction:
                tracer.reach_inside(result)
            return result

        if tracer.suspended:
            return call()
        name = f"{cls.__name__}.apply"
        result = tracer.observe(cls, name, inputs, call)
        made = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        node = next((tensor.grad_fn for tensor in made if tensor.grad_fn is not None), None)
        if any(needs) and not cls.__module__.startswith("torch."):
            tracer.calls.append(FunctionCall(cls, kept, tuple(needs), node, tracer.locator.here()))
        return result

    _SingleLevelFunction.apply = classmethod(traced_apply)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del _SingleLevelFunction.apply  # type: ignore[attr-defined]


@contextlib.contextmanager
def _patched_parameter(tracer: _Tracer) -> Iterator[None]:
    """See a tensor being wrapped as a new parameter, which neither mode of torch is told of."""
    original = nn.Parameter.__new__

    def traced_new(cls: Any, data: Any = None, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        made = original(cls, data, *args, **kwargs)
        if isinstance(data, torch.Tensor) and not tracer.suspended:
            carried, reachable = tracer.flow_of(data), tracer.gradient_mask(data)
            if carried.sources:
                place = tracer.locator.here()
                cut = Cut("nn.Parameter", spoken("nn.Parameter"), place, reachable, False, data.numel())
                carried.cuts[len(tracer.cuts)] = reachable
                tracer.cuts.append(cut)
                tracer.keep(made, carried)
        return made

    nn.Parameter.__new__ = traced_new  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Parameter.__new__ = original  # type: ignore[method-assign]


def _reach(start: Node, masks: dict[Node, int], bits: dict[int, int], visit: Callable[[Node], None]) -> int:
    """Find the leaves below a node, without recursion: graphs are deep. `visit` is called once for each new node."""
    waiting = [start]
    while waiting:
        node = waiting[-1]
        if node in masks:
            waiting.pop()
            continue
        below = [child for child, _ in node.next_functions if child is not None]
        missing = [child for child in below if child not in masks]
        if missing:
            waiting += missing
            continue
        variable = getattr(node, "variable", None)
        masks[node] = bits.get(id(variable), 0) if variable is not None else 0
        for child in below:
            masks[node] |= masks[child]
        visit(node)
        waiting.pop()
    return masks[start]


def _maker(tensor: torch.Tensor) -> str | None:
    return None if tensor.grad_fn is None else type(tensor.grad_fn).__name__


def _storage_key(tensor: torch.Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return -id(tensor)
