"""Other data for a model or a module: whether they reach a parameter that this batch does not, and mix samples."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from deconv_cli.gradients.batch_independence import BatchIndependence, try_batch
from deconv_cli.gradients.losses import projection
from deconv_cli.gradients.subject import Subject, as_scalar
from deconv_cli.gradients.tracing.backward_trace import BackwardTrace, Magnitude, trace_backward

_POWERS = (6.0, 1 / 6, 3.0, 1 / 3, 2.0, 1 / 2)
"""How far the same data are moved apart or together, where a model takes them in no other order."""

_NOISE = 1e-7
"""Gradients that are no larger, beside the loss, may be what rounding leaves of gradients that cancel."""

_CHOOSING = ("Cat", "Gather", "Index", "MaskedSelect", "Select", "Slice", "Split", "Stack", "Unbind")
"""Nodes at which a gradient is zero since other elements were chosen, and not since a unit is dead."""


def find_reached_by_others(subject: Subject, backward: BackwardTrace | None) -> frozenset[str]:
    """Name the parameters that get no gradient here, and get one from the same numbers in another order.

    Random layers are drawn anew each time. Of equal parts of a list, such as experts, one that other data reach speaks
    for those that are not used here either.
    """
    given = backward.gradients if backward is not None else {}
    without = {name for name, gradient in given.items() if Magnitude.of([gradient]).is_zero}
    unused = {name for name in without if given[name] is None}
    if not without or backward is None or backward.error is not None:
        return frozenset()
    found: set[str] = set()
    for number, names in enumerate(_tries(subject, backward, without)):
        found |= names
        if found >= without or (number >= 1 and not found):
            break
    kinds = {_kind(name) for name in found & unused}
    siblings = {name for name in unused if re.search(r"\.\d+\.", f".{name}") and _kind(name) in kinds}
    return frozenset(found | siblings)


def _kind(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _tries(subject: Subject, backward: BackwardTrace, names: set[str]) -> Iterator[set[str]]:
    """Yield which of the parameters get a gradient, for one set of data after another.

    A model may refuse numbers in another order, as a detector refuses boxes that end before they begin: it gets them
    moved apart and together. That may wake dead units too, so only what these data do not choose is looked at then.
    """
    chosen_among = {name for name in names if _is_not_chosen(subject, backward, name)}
    for number, power in enumerate(_POWERS, start=1):
        change = functools.partial(_in_other_order, generator=torch.Generator().manual_seed(number))
        found = _reached(subject, change, names, number)
        if found is None:
            found = _reached(subject, functools.partial(_moved_apart, power=power), chosen_among, number)
        if found is None:
            return
        yield found


def _is_not_chosen(subject: Subject, backward: BackwardTrace, name: str) -> bool:
    origins = backward.origins(subject.parameters[name], lambda magnitude: magnitude.is_zero)
    return all(type(node).__name__.startswith(_CHOOSING) for node in origins)


def _reached(subject: Subject, change: Callable[[Any], Any], names: set[str], number: int) -> set[str] | None:
    """Find which parameters get a gradient from changed data; None where the model does not take these."""
    wanted = [subject.parameters[name] for name in sorted(names)]
    with subject.changed_inputs(change, target_too=False):
        try:
            loss = as_scalar(subject.run(subject.seed + number)[1])
            gradients = torch.autograd.grad(loss, wanted, allow_unused=True) if wanted else []
        except Exception:  # noqa: BLE001  a model may take no other data, which says nothing of its parameters
            return None
    magnitudes = zip(sorted(names), [Magnitude.of([g]) for g in gradients], strict=True)
    noise = _NOISE * abs(float(loss.detach()))
    return {name for name, found in magnitudes if found.is_finite and (found.largest or 0.0) > noise}


def _in_other_order(leaf: Any, generator: torch.Generator) -> Any:  # noqa: ANN401  tensors or anything else
    """Mix the elements of a tensor, and draw whole numbers anew between its least and its largest."""
    if not isinstance(leaf, torch.Tensor) or leaf.numel() < 2 or leaf.layout is not torch.strided:
        return leaf
    if leaf.dtype in (torch.int64, torch.int32):
        low, high = int(leaf.min()), int(leaf.max())
        return torch.randint(low, high + 1, leaf.shape, generator=generator).to(leaf)
    return leaf.reshape(-1)[torch.randperm(leaf.numel(), generator=generator)].reshape(leaf.shape)


def _moved_apart(leaf: Any, power: float) -> Any:  # noqa: ANN401  tensors or anything else
    """Move numbers towards the ends of their range, or with a power below 1 to its middle; their order stays."""
    if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point() or leaf.numel() < 2:
        return leaf
    low, high = leaf.aminmax()
    share = (leaf - low) / (high - low).clamp_min(torch.finfo(leaf.dtype).tiny)
    above, below = share**power, (1 - share) ** power
    return low + (high - low) * above / (above + below)


def reached_by_other_data(module: nn.Module, arguments: tuple[Any, ...]) -> frozenset[str]:
    """Name the parameters of a module that get no gradient from its last arguments, and do from other data."""
    try:
        given = pytree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, torch.Tensor) else leaf, arguments)
        subject = Subject(copy.deepcopy(module), given, {}, None, projection)
        return find_reached_by_others(subject, trace_backward(subject.run()[1], subject.trainable))
    except Exception:  # noqa: BLE001  a module may not be made to be copied, or to take other data
        return frozenset()


def try_batch_of(modules: list[nn.Module], arguments: dict[int, Any]) -> BatchIndependence:
    """Try the one module of a pass on its last arguments; nothing is found where it has no single batch for an input.

    Args:
        modules: those that the script called itself in the pass.
        arguments: what they were called with last, by the id of the module.
    """
    given: tuple[Any, ...] = arguments.get(id(modules[0]), ()) if len(modules) == 1 else ()
    if len(given) != 1 or not isinstance(given[0], torch.Tensor):
        return BatchIndependence(None)
    try:
        # The script goes on with its own module, which may keep something of each call.
        module = copy.deepcopy(modules[0])
        subject = Subject(module, (given[0].detach().clone(),), {}, None, projection)
        with subject.in_double():
            return try_batch(subject)
    except Exception as error:  # noqa: BLE001  a module may not be made to be copied, or to run in evaluation mode
        return BatchIndependence(0, doubt=str(error))
