"""A model with its inputs and its loss, which can be run again and again with the same result."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from deconv_cli.errors import UsageError
from deconv_cli.gradients.nested_tensors import leaves_of
from deconv_cli.gradients.torch_modes import DetachedConstants, EachCall, lift_casts, replaced

Loss = Callable[[Any, Any], Any]
"""Called with the output of the model and the target (None without one); gives a scalar."""


@dataclass(eq=False)
class Subject:
    """A model with its inputs, a target and a loss.

    Attributes:
        loss: called with the output and the target.
        seed: set before every run, so that random layers draw the same numbers.
        batch_axis: which axis of inputs and outputs counts the samples, None for no such axis.
        is_axis_given: the user named that axis; otherwise it may be time.
        parameters: by name, each once.
        written: parameters that forward itself writes to; every run restores them.
        moving: ids of buffers that forward writes to. Every run gives forward a copy, which backward may read later,
            unless `has_aliases`: forward also reaches a buffer by another name, so it would not meet the copy.
        is_starting: runs keep all that forward writes, as in the first passes of a training.
    """

    model: nn.Module
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    target: Any
    loss: Loss
    seed: int = 0
    batch_axis: int | None = 0
    is_axis_given: bool = False
    parameters: dict[str, nn.Parameter] = field(init=False)
    written: frozenset[str] = field(default=frozenset(), init=False)
    moving: set[int] = field(default_factory=set, init=False)
    has_aliases: bool = field(default=False, init=False)
    _held: DetachedConstants | None = field(default=None, init=False)
    _is_in_double: bool = field(default=False, init=False)
    is_starting: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.parameters = dict(self.model.named_parameters())

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that require a gradient."""
        return {name: parameter for name, parameter in self.parameters.items() if parameter.requires_grad}

    def run(self, seed: int | None = None) -> tuple[Any, Any]:
        """Seed the generators, compute the output of the model and its loss, and restore the buffers."""
        with self._watched_run():
            seed_everything(self.seed if seed is None else seed)
            output = self.model(*self.arguments, **self.keywords)
            return output, self.loss(output, self.target)

    def output(self) -> Any:  # noqa: ANN401  whatever the model gives
        """Compute the output alone."""
        with self._watched_run():
            seed_everything(self.seed)
            return self.model(*self.arguments, **self.keywords)

    def value(self, seed: int | None = None) -> float:
        """Compute the loss as a number."""
        return float(as_scalar(self.run(seed)[1]).detach())

    @contextlib.contextmanager
    def _watched_run(self) -> Iterator[None]:
        """Run in double precision or with constants held, as set up, and restore the buffers afterwards."""
        with contextlib.ExitStack() as stack:
            if not self.is_starting:
                stack.enter_context(self.untouched_state())
            if self._is_in_double:
                stack.enter_context(EachCall(lift_casts))
            if self._held is not None:
                stack.enter_context(self._held.holding())
            yield

    @contextlib.contextmanager
    def untouched_state(self) -> Iterator[None]:
        """Restore buffers, also replaced ones, and the parameters that forward writes to."""
        # A watching mode must see neither the copies nor that they are restored.
        with torch._C.DisableTorchFunction():
            kept = [
                (module, name, buffer, buffer.detach().clone())
                for module in self.model.modules()
                for name, buffer in module._buffers.items()
                if buffer is not None
            ]
            data = [(self.parameters[name], self.parameters[name].data) for name in self.written]
            copies = [values.clone() for _, values in data]
            moving = set() if self.has_aliases else self.moving
            own = {id(buffer): buffer.detach().clone() for *_, buffer, _ in kept if id(buffer) in moving}
        for module, name, buffer, _ in kept:
            module._buffers[name] = own.get(id(buffer), buffer)
        try:
            yield
        finally:
            with torch.no_grad(), torch._C.DisableTorchFunction():
                for (parameter, values), copy in zip(data, copies, strict=True):
                    parameter.data = values.copy_(copy)
                for module, name, buffer, values in kept:
                    module._buffers[name] = buffer
                    if not torch.equal(buffer, values):
                        buffer.data.copy_(values)
                        if type(buffer) is torch.Tensor and not buffer.requires_grad:
                            self.moving.add(id(buffer))

    @contextlib.contextmanager
    def with_fields(self, **changed: Any) -> Iterator[None]:  # noqa: ANN401  the types of the fields
        """Change fields for a while."""
        with contextlib.ExitStack() as stack:
            for name, value in changed.items():
                stack.enter_context(replaced(self, name, value))
            yield

    @contextlib.contextmanager
    def without_gradients(self) -> Iterator[None]:
        """Clear the `.grad` of the parameters for a while."""
        kept = [(parameter, parameter.grad) for parameter in self.parameters.values()]
        try:
            for parameter, _ in kept:
                parameter.grad = None
            yield
        finally:
            for parameter, gradient in kept:
                parameter.grad = gradient

    @contextlib.contextmanager
    def holding_detached(self) -> Iterator[None]:
        """Hold detached values constant for a while, at their values for the current parameters."""
        with self.with_fields(_held=DetachedConstants()):
            self.run()
            yield

    @contextlib.contextmanager
    def in_double(self) -> Iterator[None]:
        """Turn parameters, buffers, tensor attributes, inputs and target to float64 for a while."""
        tensors = [tensor for tensor in self._own_tensors() if tensor.is_floating_point() or tensor.is_complex()]
        kept = [(tensor, tensor.data) for tensor in tensors]
        default = torch.get_default_dtype()
        try:
            for tensor in tensors:
                tensor.data = tensor.data.to(_double_of(tensor))
            torch.set_default_dtype(torch.float64)
            with self.changed_inputs(_doubled), self.with_fields(_is_in_double=True):
                yield
        finally:
            torch.set_default_dtype(default)
            for tensor, data in kept:
                tensor.data = data

    def changed_inputs(self, change: Callable[[Any], Any], *, target_too: bool = True) -> AbstractContextManager[None]:
        """Change every tensor among the inputs, and by default the target, for a while."""
        arguments, keywords = pytree.tree_map(change, (self.arguments, self.keywords))
        target = pytree.tree_map(change, self.target) if target_too else self.target
        return self.with_fields(arguments=arguments, keywords=keywords, target=target)

    def evaluator(self, value: float) -> tuple[Callable[[], float], float | None]:
        """Return a function that computes the loss, without graphs where that works, and its value where that is known.

        `value` is the loss of a watched run. Held constants need the graph, which shows what runs under `no_grad`.
        """
        if self._held is None:
            without_graph = torch.no_grad()(self.value)
            with contextlib.suppress(Exception):
                again = without_graph()
                if again == value or again == self.value():
                    return without_graph, again
        return self.value, None

    def _own_tensors(self) -> list[torch.Tensor]:
        # The members of a module hold the dictionaries of its parameters, buffers and modules.
        leaves = [leaf for module in self.model.modules() for leaf in leaves_of(vars(module))]
        leaves += [p for leaf in leaves if isinstance(leaf, nn.Module) for p in leaf.parameters()]
        return list({id(leaf): leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_leaf}.values())

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put every module into evaluation mode for a while."""
        with contextlib.ExitStack() as stack:
            for module in self.model.modules():
                stack.enter_context(replaced(module, "training", False))
            yield


@contextlib.contextmanager
def untouched_generators() -> Iterator[None]:
    """Restore the random generators of torch, Python and NumPy."""
    numpy = sys.modules.get("numpy")
    kept, kept_numpy = random.getstate(), numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
            yield
    finally:
        random.setstate(kept)
        if numpy:
            numpy.random.set_state(kept_numpy)


def seed_everything(seed: int) -> None:
    """Seed the generators of torch, Python, and NumPy if it is loaded."""
    torch.manual_seed(seed)
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)


def as_scalar(loss: Any) -> torch.Tensor:  # noqa: ANN401  whatever the loss function gives
    """Convert a loss to a scalar tensor: a tensor of one element, or a plain number.

    Raises:
        UsageError: the loss is neither.
    """
    if isinstance(loss, bool | int | float):
        return torch.tensor(float(loss), dtype=torch.float64)
    if not isinstance(loss, torch.Tensor) and hasattr(loss, "item") and getattr(loss, "size", 0) == 1:
        return torch.tensor(float(loss.item()), dtype=torch.float64)
    if isinstance(loss, torch.Tensor) and loss.is_complex():
        raise UsageError("the loss should be a real number, but is complex; take .real or .abs() of it.")
    if not isinstance(loss, torch.Tensor):
        raise UsageError(f"the loss should be a scalar, but is a {type(loss).__name__}; choose another loss.")
    if loss.numel() != 1:
        raise UsageError(
            f"the loss should be a scalar, but is of shape {tuple(loss.shape)}; reduce it, or choose another loss."
        )
    return loss.reshape(())


def _doubled(value: Any) -> Any:  # noqa: ANN401  tensors or anything else
    has_digits = isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())
    return value.detach().to(_double_of(value)) if has_digits else value


def _double_of(tensor: torch.Tensor) -> torch.dtype:
    return torch.complex128 if tensor.is_complex() else torch.float64
