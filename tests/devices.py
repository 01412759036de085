"""Arithmetic for a device that is not there: what it computes is only shapes, but on the device, all of it.

A task is a function of tensors. It runs on the CPU first, where every answer of `operators.synchronize` is written
down; then on tensors without numbers under `FakeTensorMode`, where those answers are read out again. So the second run
takes the very branches of the first one (converged or not, blocks in doubt or none), and data-dependent shapes are
those of the first one. A tensor on another device, whatever made it, ends it, and so does a number that is read
past `synchronize`, or a type that the device has not.

Under the same watch a task may run on torch's own device without numbers, "meta". So must those that build a graph of
derivatives, for which torch asks a device for its streams, and a build without that device ends the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from deconv_cli.operators import spectrum, synchronize

READS = (
    "holds_anywhere",
    "holds_everywhere",
    "as_number",
    "as_numbers",
    "medians",
    "as_index",
    "places",
    "distinct",
    "normal_numbers",
)
DOUBLE = frozenset({torch.float64, torch.complex128})

Task = Callable[..., Any]
"""Takes tensors, gives tensors: one, or lists, tuples and dictionaries of them."""


class ForeignTensorError(AssertionError):
    """An operation had to do with a tensor that should not be there."""


class OnlyOn(TorchDispatchMode):
    """Refuses every operation that takes or gives a tensor of another device, or of a type that the device has not."""

    def __init__(self, device: str, barred: frozenset[torch.dtype] = frozenset()) -> None:
        super().__init__()
        self.device = torch.device(device)
        self.barred = barred
        self.n_operations = 0
        self._born: list[Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.prim.device.default:
            return result
        if func is torch.ops.aten.lift_fresh.default:
            # `torch.tensor([...], device=...)` is born on the host: here, and once more when it is copied.
            self._born.append(result)
            return result
        self.n_operations += 1
        for tensor in (*_tensors_in(args), *_tensors_in((result,))):
            device = tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device
            if device.type != self.device.type:
                if func is torch.ops.aten._to_copy.default and any(tensor is born for born in self._born):
                    continue
                raise ForeignTensorError(f"{func} meets a tensor on {device}, not on {self.device}")
            if tensor.dtype in self.barred:
                raise ForeignTensorError(f"{func} meets {tensor.dtype}, which {self.device} has not")
        return result


def _tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """As `tensors`, but ten times as fast: lists of tensors are all that operations know."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors_in(value)


class SpelledOut(TorchFunctionMode):
    """Spells out what looks for the device before anything else, which a build of torch without it has not."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.__getitem__:
            view, indices = _view(*args)
            return torch.ops.aten.index.Tensor(view, indices) if indices else view
        if func is Tensor.__setitem__:
            x, key, value = args
            view, indices = _view(x, key)
            if indices:
                return view.index_put_(tuple(indices), value)
            return torch.ops.aten.copy_(view, value) if isinstance(value, Tensor) else view.fill_(value)
        return SPELLED_OUT.get(func, func)(*args, **(kwargs or {}))


def _view(x: Tensor, key: Any) -> tuple[Tensor, list[Tensor | None]]:
    """Do of an indexing what gives a view, and tell which index tensors are left for it."""
    keys = key if isinstance(key, tuple) else (key,)
    indices: list[Tensor | None] = []
    axis = 0
    for i, k in enumerate(keys):
        if k is Ellipsis:
            axis = x.ndim - sum(later is not None for later in keys[i + 1 :])
        elif k is None:
            x = x.unsqueeze(axis)
            axis += 1
        elif isinstance(k, int):
            x = x.select(axis, k)
        elif isinstance(k, slice):
            x = torch.ops.aten.slice.Tensor(x, axis, k.start, k.stop, 1 if k.step is None else k.step)
            axis += 1
        else:
            indices += [None] * (axis - len(indices)) + [k]
            axis += 1
    return x, indices


def _contiguous(x: Tensor) -> Tensor:
    return x if x.is_contiguous() else x.clone(memory_format=torch.contiguous_format)


SPELLED_OUT = {Tensor.contiguous: _contiguous, Tensor.__invert__: torch.bitwise_not, Tensor.copy_: torch.ops.aten.copy_}


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def record(task: Task, inputs: tuple[Any, ...]) -> tuple[list[Tensor], list[tuple[str, Any]]]:
    """Run a task on the CPU, and record every value that its host reads."""
    tape: list[tuple[str, Any]] = []

    def noting(name: str, read: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(values: Tensor, *more: Any) -> Any:
            tape.append((name, read(values, *more)))
            return tape[-1][1]

        return wrapped

    with ExitStack() as replaced:
        replaced.enter_context(mock.patch.object(spectrum, "MAX_REMEMBERED", 0))  # a device remembers no search
        for name in READS:
            replaced.enter_context(mock.patch.object(synchronize, name, noting(name, getattr(synchronize, name))))
        return tensors(task(*inputs)), tape


def replay(
    task: Task, inputs: tuple[Any, ...], tape: list[tuple[str, Any]], device: str, barred: frozenset[torch.dtype]
) -> list[Tensor]:
    """Run a task without numbers on a device, with a host that reads what the tape says."""
    waiting = list(tape)

    def without_numbers(tree: Any) -> Any:
        def empty(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=device)

        return tree_map(empty, tree)

    def telling(name: str) -> Callable[..., Any]:
        def wrapped(values: Any, *_: Any) -> Any:
            found = {asked.device.type for asked in tensors(values)}
            assert found == {device}, f"{name} is asked about a tensor on {found}"
            assert waiting, f"{name} is asked, but the run on the CPU was at its end"
            noted, answer = waiting.pop(0)
            assert noted == name, f"{name} is asked, but the run on the CPU asked {noted}"
            return without_numbers(answer)

        return wrapped

    with ExitStack() as replaced:
        if device != "meta":
            replaced.enter_context(FakeTensorMode())
            replaced.enter_context(SpelledOut())
        guard = replaced.enter_context(OnlyOn(device, barred))
        for name in READS:
            replaced.enter_context(mock.patch.object(synchronize, name, telling(name)))
        results = tensors(task(*without_numbers(inputs)))
    assert guard.n_operations > 0
    assert not waiting, f"the run on the CPU went on, and asked {waiting[0][0]}"
    return results


def check_without_numbers(
    task: Task, *inputs: Any, device: str = "cuda", barred: frozenset[torch.dtype] = frozenset()
) -> list[tuple[str, Any]]:
    """Check that a task runs on a device from its inputs to its results; gives the tape of what the host read."""
    expected, tape = record(task, inputs)
    assert expected
    found = replay(task, inputs, tape, device, barred)
    assert [t.shape for t in found] == [t.shape for t in expected]
    assert {t.device.type for t in found} == {device}
    if not barred:
        assert [t.dtype for t in found] == [t.dtype for t in expected]
    return tape


def check_on_cuda(task: Task, *inputs: Any, tolerance: float = 1e-6) -> None:
    """Check that a task gives the same result on a CUDA device as on the CPU."""
    expected = tensors(task(*inputs))
    found = tensors(task(*tree_map(lambda leaf: leaf.cuda() if isinstance(leaf, Tensor) else leaf, inputs)))
    assert {t.device.type for t in found} == {"cuda"}
    for on_cuda, on_cpu in zip(found, expected, strict=True):
        torch.testing.assert_close(on_cuda.cpu(), on_cpu, rtol=tolerance, atol=tolerance * float(on_cpu.abs().max()))


def cases(*params: Any) -> pytest.MarkDecorator:
    """Run a test for each task with its inputs, given to it as one tuple."""
    return pytest.mark.parametrize("case", [pytest.param(p.values, id=p.id, marks=p.marks) for p in params])


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here to compare with")
