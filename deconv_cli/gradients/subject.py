"""What is checked: a model, its inputs and a loss, run as often as needed and the same each time."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from deconv_cli.errors import UsageError
from deconv_cli.gradients.detached_constants import HeldConstants, LiftedCasts
from deconv_cli.gradients.tensors import is_plain, leaves_of, tensors_in

Loss = Callable[[Any, Any], Any]
"""Called with the output of the model and the target (None without one); gives a scalar."""


@dataclass(eq=False)
class Subject:
    """A model with everything that it takes to compute its loss from output and target.

    Attributes:
        seed: set before every run, so that random layers draw the same numbers.
        batch_axis: which axis of inputs and outputs counts the samples, None where there is none.
        is_axis_given: the user named that axis; else it is looked at whether it may be time.
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
    """By name, each once."""
    _held: HeldConstants | None = field(default=None, init=False)
    _is_in_double: bool = field(default=False, init=False)
    _is_starting: bool = field(default=False, init=False)
    written: frozenset[str] = field(default=frozenset(), init=False)
    """Parameters that forward itself writes to, which are put back after every run."""

    def __post_init__(self) -> None:
        self.parameters = dict(self.model.named_parameters())

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that require a gradient."""
        return {name: parameter for name, parameter in self.parameters.items() if parameter.requires_grad}

    def run(self, seed: int | None = None) -> tuple[Any, Any]:
        """Compute output and loss. Generators are seeded before, buffers are put back after.

        Returns:
            The output of the model, and what the loss function gave.
        """
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
        """Run as this subject is set up to: in double precision, with values held constant, buffers put back after."""
        with contextlib.ExitStack() as stack:
            if not self._is_starting:
                stack.enter_context(self.untouched_state())
            if self._is_in_double:
                stack.enter_context(LiftedCasts())
            if self._held is not None:
                stack.enter_context(self._held)
            yield

    @contextlib.contextmanager
    def untouched_state(self) -> Iterator[None]:
        """Put back buffers, and the parameters that are written to; a module may also replace a buffer by another."""
        # What watches the run is to see neither the copies nor that they are put back.
        with torch._C.DisableTorchFunction():
            kept = [
                (module, name, buffer, buffer.detach().clone())
                for module in self.model.modules()
                for name, buffer in module._buffers.items()
                if buffer is not None
            ]
            data = [(self.parameters[name], self.parameters[name].data) for name in self.written]
            copies = [values.clone() for _, values in data]
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

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Leave for a while all that forward writes, as in the first passes of a training."""
        self._is_starting = True
        try:
            yield
        finally:
            self._is_starting = False

    @contextlib.contextmanager
    def keeping_writes_to(self, name: str) -> Iterator[None]:
        """Leave for a while what forward writes to one parameter."""
        kept, self.written = self.written, self.written - {name}
        try:
            yield
        finally:
            self.written = kept

    @contextlib.contextmanager
    def without_gradients(self) -> Iterator[None]:
        """Put aside what stands in the `.grad` of the parameters for a while."""
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
        """Hold constant for a while what code detaches on purpose, at its value for the parameters as they are now."""
        self._held = HeldConstants()
        try:
            self.run()
            yield
        finally:
            self._held = None

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
            self._is_in_double = True
            with self.changed_inputs(_doubled):
                yield
        finally:
            torch.set_default_dtype(default)
            self._is_in_double = False
            for tensor, data in kept:
                tensor.data = data

    @contextlib.contextmanager
    def changed_inputs(self, change: Callable[[Any], Any], *, target_too: bool = True) -> Iterator[None]:
        """Change every tensor among the inputs, and by default the target, for a while."""
        kept = (self.arguments, self.keywords, self.target)
        try:
            self.arguments, self.keywords = pytree.tree_map(change, kept[:2])
            self.target = pytree.tree_map(change, self.target) if target_too else self.target
            yield
        finally:
            self.arguments, self.keywords, self.target = kept

    @contextlib.contextmanager
    def narrowed(self, n_samples: int) -> Iterator[bool]:
        """Keep only the first samples of the batch for a while; yields whether that could be done."""
        axis = self.batch_axis
        tensors = tensors_in((self.arguments, self.keywords, self.target))
        sizes = {tensor.shape[axis] if axis is not None and tensor.ndim > axis else 0 for tensor in tensors}
        if axis is None or len(sizes) != 1 or min(sizes) <= n_samples:
            yield False
            return

        def first(leaf: Any) -> Any:  # noqa: ANN401  tensors or anything else
            return leaf.narrow(axis, 0, n_samples).clone() if isinstance(leaf, torch.Tensor) else leaf

        with contextlib.ExitStack() as stack:
            stack.enter_context(self.changed_inputs(first))
            try:
                self.output()
            except Exception:  # noqa: BLE001  a model may be made for one size of batch
                stack.close()
                yield False
            else:
                yield True

    def evaluator(self, value: float) -> tuple[Callable[[], float], float | None]:
        """Return what computes the loss without building graphs, unless the model needs them.

        Where values are held constant, the graph tells code under `no_grad` from other code.

        Args:
            value: the loss, as a watched run gave it.

        Returns:
            The function, and what it gives, where that is known.
        """
        if self._held is not None:
            return self.value, None

        def without_graph() -> float:
            with torch.no_grad():
                return self.value()

        with contextlib.suppress(Exception):
            again = without_graph()
            if again == value or again == self.value():
                return without_graph, again
        return self.value, None

    def _own_tensors(self) -> list[torch.Tensor]:
        found: dict[int, torch.Tensor] = {}
        for module in self.model.modules():
            members = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
            hidden = [leaf for member in vars(module).values() if is_plain(member) for leaf in leaves_of(member)]
            members += [p for leaf in hidden if isinstance(leaf, nn.Module) for p in leaf.parameters()]
            for member in (*members, *hidden):
                if isinstance(member, torch.Tensor) and member.is_leaf:
                    found[id(member)] = member
        return list(found.values())

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put every module into evaluation mode for a while."""
        modes = [(module, module.training) for module in self.model.modules()]
        try:
            for module, _ in modes:
                module.training = False
            yield
        finally:
            for module, mode in modes:
                module.training = mode


@contextlib.contextmanager
def untouched_generators() -> Iterator[None]:
    """Put the random numbers of torch, Python and NumPy back to where they were."""
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
    """Seed the generators of torch, of Python, and of NumPy where the model has loaded it."""
    torch.manual_seed(seed)
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)


def as_scalar(loss: Any) -> torch.Tensor:  # noqa: ANN401  whatever the loss function gives
    """Take a loss for what it is: a tensor of one element, or a number that has left torch.

    Raises:
        UsageError: it is neither.
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
