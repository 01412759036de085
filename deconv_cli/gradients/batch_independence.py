"""Whether each sample of a batch has an output of its own, and which operation mixes them if not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.tensors_in import tensors_in, to_float64
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
