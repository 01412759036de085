"""The model on other data: whether samples of a batch mix, and whether other data reach an unused parameter."""

from __future__ import annotations

import contextlib
import copy
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from deconv_cli.gradients.losses import projection
from deconv_cli.gradients.subject import Subject, as_scalar
from deconv_cli.gradients.tensors import tensors_in, to_float64
from deconv_cli.gradients.tracing.backward_trace import BackwardTrace, Magnitude, trace_backward
from deconv_cli.gradients.tracing.forward_trace import Operation
from deconv_cli.gradients.tracing.interception import trace_forward
from deconv_cli.gradients.tracing.operations import ALONG_EDGES

_TOLERANCE = 1e-9

_SLIGHT = 1e-3
"""Relative change that ending an iteration a few turns earlier or later may make."""


@dataclass(frozen=True)
class BatchIndependence:
    """What changing one sample along an axis does to the others, and the first operation whose output changes.

    The axis is None where there is none; `doubt` says why nothing could be tried.
    """

    axis: int | None
    is_mixed: bool = False
    mixer: Operation | None = None
    doubt: str | None = None


def try_batch(subject: Subject) -> BatchIndependence:
    """Replace one sample of the batch, in evaluation mode, and look whether the output of another changes."""
    axis = subject.batch_axis
    if axis is None:
        return BatchIndependence(None)
    sizes = {t.shape[axis] if t.ndim > axis else 0 for t in tensors_in((subject.arguments, subject.keywords))}
    if len(sizes) != 1 or min(sizes) < 2:
        return BatchIndependence(axis, doubt=f"the inputs do not share an axis {axis} of two samples or more")
    with subject.evaluating(), _without_graph_if_possible(subject) as before:
        if not any(t.ndim > axis and t.shape[axis] in sizes for t in tensors_in(before)):
            return BatchIndependence(axis, doubt=f"the output has no axis {axis} with as many samples as the inputs")
        is_certain = subject.is_axis_given or _drops_the_next_axis(subject, before)
        doubt = None if is_certain else _doubt_about_time(subject, axis)
        if doubt:
            return BatchIndependence(axis, doubt=doubt)
        with _other_sample(subject, axis):
            change = _largest_change(before, subject.output(), axis, sample=0)
        if change <= _TOLERANCE:
            return BatchIndependence(axis)
        mixer = _mixer(subject, axis)
        doubt = _doubt_about_mixing(subject, before, mixer, change, is_certain=is_certain)
    return BatchIndependence(axis, is_mixed=not doubt, mixer=None if doubt else mixer, doubt=doubt)


def _doubt_about_mixing(
    subject: Subject,
    before: Any,  # noqa: ANN401  an output of the model
    mixer: Operation | None,
    change: float,
    *,
    is_certain: bool,
) -> str | None:
    """Write what else a change of other samples may mean; None where nothing speaks for it."""
    axis = subject.batch_axis or 0
    if mixer is None and change <= _SLIGHT:
        return (
            f"the outputs of other samples change by {change:.1g} with one of them, and no operation mixes them: a "
            "condition on all of them, such as the end of an iteration, does"
        )
    if is_certain:
        return None
    if _looks_like_time(subject, before, axis):
        return (
            f"axis {axis} looks like time, since later outputs depend on earlier inputs but not the other way "
            "round; name the axis of the samples (batch_axis)"
        )
    if mixer is not None and mixer.bare_name in ALONG_EDGES and not _runs_on_half(subject, axis):
        return (
            f"axis {axis} looks like the nodes of a graph, since {mixer.label} mixes them and half of them cannot be "
            "taken without the others; name the axis of the samples (batch_axis)"
        )
    return None


def _drops_the_next_axis(subject: Subject, output: Any) -> bool:  # noqa: ANN401  an output of the model
    """Return whether axis 0 counts samples for certain: of the two that may, the output has this one alone."""
    inputs = tensors_in((subject.arguments, subject.keywords))
    if subject.batch_axis != 0 or any(tensor.ndim < 3 for tensor in inputs):
        return False
    first, second = inputs[0].shape[:2]
    given = [*tensors_in(output), *tensors_in(subject.target)]
    return 1 < second != first and all(first in t.shape[:1] and second not in t.shape for t in given)


def _runs_on_half(subject: Subject, axis: int) -> bool:
    def half(leaf: Any) -> Any:  # noqa: ANN401  tensors or anything else
        is_long = isinstance(leaf, torch.Tensor) and leaf.ndim > axis
        return leaf.narrow(axis, 0, leaf.shape[axis] // 2) if is_long else leaf

    with subject.changed_inputs(half, target_too=False), contextlib.suppress(Exception):
        subject.output()
        return True
    return False


@contextlib.contextmanager
def _without_graph_if_possible(subject: Subject) -> Iterator[Any]:
    """Run forward without a graph, and whatever follows, unless it asks for gradients itself, as a model of forces."""
    try:
        with torch.no_grad():
            found = subject.output()
    except RuntimeError:
        yield subject.output()
    else:
        with torch.no_grad():
            yield found


def _doubt_about_time(subject: Subject, axis: int) -> str | None:
    for name, module in subject.model.named_modules() if axis == 0 else ():
        time_first = isinstance(module, nn.RNNBase | nn.MultiheadAttention) and not module.batch_first
        if time_first and not _is_inner(name, subject.model):
            return f"'{name}' has batch_first=False, so axis 0 may be time; name the axis of the samples (batch_axis)"
    return None


def _is_inner(name: str, model: nn.Module) -> bool:
    """Return whether a layer belongs to a larger one that turns the axes by itself."""
    parts = name.split(".")
    modules = dict(model.named_modules())
    owners = [modules[".".join(parts[:n])] for n in range(1, len(parts))]
    return any(getattr(owner, "batch_first", False) for owner in owners)


def _other_sample(subject: Subject, axis: int, sample: int = 0) -> contextlib.AbstractContextManager[None]:
    return subject.changed_inputs(lambda leaf: _with_other_sample(leaf, axis, sample), target_too=False)


def _with_other_sample(leaf: Any, axis: int, sample: int) -> Any:  # noqa: ANN401
    """Replace one sample by a rearranged copy of another, so that it stays a plausible input."""
    if not isinstance(leaf, torch.Tensor) or leaf.ndim <= axis:
        return leaf
    changed = leaf.clone()
    other = leaf.select(axis, (sample + 1) % leaf.shape[axis]).reshape(-1)
    order = torch.arange(other.numel()).flip(0)
    changed.select(axis, sample).copy_(other[order].reshape(changed.select(axis, sample).shape))
    return changed


def _change_of_others(before: torch.Tensor, after: torch.Tensor, axis: int, sample: int) -> float:
    """Measure by how much, relative to the largest number, what does not belong to a sample changes.

    Along other axes of the same length, a sample meets the others in pairs, which may change with it.
    """
    one, two = to_float64(before), to_float64(after)
    gap = (one - two).abs().nan_to_num(nan=0.0, posinf=0.0)
    for other, length in enumerate(before.shape):
        if length == before.shape[axis]:
            gap.select(other, sample).zero_()
    return float(gap.max() / one.abs().nan_to_num(nan=0.0).max().clamp_min(1e-30)) if gap.numel() else 0.0


def _largest_change(before: Any, after: Any, axis: int, sample: int) -> float:  # noqa: ANN401  outputs of the model
    """Measure by how much any sample but one has changed."""
    pairs = zip(tensors_in(before), tensors_in(after), strict=False)
    alike = [(one, two) for one, two in pairs if one.ndim > axis and one.shape == two.shape and one.shape[axis] > 1]
    return max((_change_of_others(one, two, axis, sample) for one, two in alike), default=0.0)


def _looks_like_time(subject: Subject, before: Any, axis: int) -> bool:  # noqa: ANN401  an output of the model
    """Replace the last sample: along time nothing before it changes."""
    last = tensors_in((subject.arguments, subject.keywords))[0].shape[axis] - 1
    with _other_sample(subject, axis, last):
        return _largest_change(before, subject.output(), axis, last) <= _TOLERANCE


def _mixer(subject: Subject, axis: int) -> Operation | None:
    before = trace_forward(subject, keep_tensors=True)
    with _other_sample(subject, axis):
        after = trace_forward(subject, keep_tensors=True)
    for one, two in zip(before.log.tensors, after.log.tensors, strict=False):
        if one.name == two.name and _largest_change(one.tensor, two.tensor, axis, sample=0) > _TOLERANCE:
            return one.operation
    return None


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
