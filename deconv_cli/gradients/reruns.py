"""The loss computed again: whether it is the same, whether it changes with a parameter, and what forward writes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.tensors_in import tensors_in
from deconv_cli.gradients.tracing.backward_trace import BackwardTrace, Magnitude
from deconv_cli.gradients.tracing.code_location import CodeLocation
from deconv_cli.gradients.tracing.forward_trace import Detachment, ForwardTrace, Operation


@dataclass(frozen=True)
class Repetition:
    """The loss with one seed, twice, and with another; `drawn` are the operations that draw random numbers."""

    first: float
    second: float
    other_seed: float
    drawn: tuple[Operation, ...]

    @property
    def is_noisy(self) -> bool:
        """Whether one seed does not give one loss."""
        return not _is_same(self.first, self.second)

    @property
    def is_random(self) -> bool:
        """Whether the loss depends on the seed."""
        return not _is_same(self.first, self.other_seed)


def repeat(subject: Subject, forward: ForwardTrace) -> Repetition:
    """Compute the loss again with the same seed, and with another one."""
    # What is drawn around the model, such as the weights of the loss that is used where none is named, has no line.
    drawn = tuple(draw for draw in forward.log.random if draw.location.file or draw.location.module)
    first, second = float(forward.loss.detach()), subject.value()
    if not _is_same(first, second):
        # A pass that is watched may take another way through torch, and rounds otherwise then.
        first, second = second, subject.value()
    return Repetition(first, second, subject.value(subject.seed + 1), drawn)


def describe_randomness(repetition: Repetition, seed: int) -> list[str]:
    """Note that the loss depends on the seed, where it does and can be checked all the same."""
    if repetition.is_noisy or not repetition.is_random:
        return []
    where = f" ({repetition.drawn[0].label} at {repetition.drawn[0].location})" if repetition.drawn else ""
    return [f"the loss is random{where}; seed {seed} was set before every run, so it could be checked"]


def _is_same(first: float, second: float) -> bool:
    return first == second or (math.isnan(first) and math.isnan(second))


_SMALL_CHANGE = 1e-3
_LARGE_CHANGES = (0.1, 1.0, 10.0)


@dataclass(frozen=True)
class Response:
    """Whether the loss changes with a parameter: under small changes (`is_smooth`), under any change (`is_moved`)."""

    is_smooth: bool
    is_moved: bool


def measure_responses(subject: Subject, forward: ForwardTrace, backward: BackwardTrace | None) -> dict[str, Response]:
    """Try the parameters that a derivative in the loss leaves out, and whose gradient is missing or zero."""
    responses = {}
    for name in subject.trainable:
        gradient = backward.gradients.get(name) if backward is not None else None
        if forward.bit(name) in forward.log.shifted and Magnitude.of([gradient]).is_zero:
            is_smooth = _loss_changes_with(subject, name, (_SMALL_CHANGE,))
            responses[name] = Response(is_smooth, is_smooth or _loss_changes_with(subject, name, _LARGE_CHANGES))
    return responses


def find_moved_from_outside(subject: Subject, forward: ForwardTrace, backward: BackwardTrace | None) -> frozenset[str]:
    """Find the parameters without a gradient that left torch as plain values, and on which the loss depends.

    A thresholded loss may be constant in one parameter and change with another that leaves torch on the same line.
    """
    moved: dict[tuple[str, ...], bool] = {}
    found = set()
    for name in subject.trainable:
        bit = forward.bit(name)
        uses = uses_outside(forward, bit)
        gradient = backward.gradients.get(name) if backward is not None else None
        if gradient is not None or not uses or (forward.flow.sources | forward.reached) & bit:
            continue
        lines = tuple(sorted({str(use.location) for use in uses}))
        if lines not in moved:
            behind = 0
            for use in uses:
                behind |= use.lost
            returned = getattr(subject.model, "returned", None)
            if returned is not None:  # a recorded pass does not compute with plain values again
                moved[lines] = not returned.isdisjoint(lines)
                found |= {name} if moved[lines] else set()
                continue
            names = [other for other in subject.trainable if forward.bit(other) & behind]
            moved[lines] = any(_loss_changes_with(subject, other, _LARGE_CHANGES) for other in names)
        if moved[lines]:
            found.add(name)
    return frozenset(found)


def uses_outside(forward: ForwardTrace, bit: int) -> list[Detachment]:
    """List the operations at which a parameter's value became a number, a list or an array."""
    return [use for use in forward.log.outside_uses if use.lost & bit]


def _loss_changes_with(subject: Subject, name: str, sizes: tuple[float, ...]) -> bool:
    """Return whether the loss changes when a parameter is changed by parts or multiples of its size."""
    parameter = subject.parameters[name]
    kept = parameter.data.clone()
    generator = torch.Generator().manual_seed(1)
    try:
        before = subject.value()
        for size in sizes:
            noise = torch.randn(kept.shape, generator=generator).to(kept)
            parameter.data.copy_(kept + size * noise * kept.abs().mean().clamp_min(0.1))
            if subject.value() != before:
                return True
    finally:
        parameter.data.copy_(kept)
    return False


_MAX_SOURCES = 3


def find_non_finite_sources(subject: Subject) -> tuple[str, ...]:
    """Describe the parameters, buffers, inputs and targets that are not finite, a few words each."""
    given = tensors_in((subject.arguments, subject.keywords))
    named: list[tuple[str, torch.Tensor]] = [
        *((f"the parameter '{name}'", parameter) for name, parameter in subject.parameters.items()),
        *((f"the buffer '{name}'", buffer) for name, buffer in subject.model.named_buffers()),
        *((f"an input of shape {tuple(tensor.shape)}", tensor) for tensor in given),
        *(("the target", tensor) for tensor in tensors_in(subject.target)),
    ]
    found = [words for words, tensor in named if not bool(tensor.detach().isfinite().all())]
    return tuple(dict.fromkeys(found))[:_MAX_SOURCES]


@dataclass(frozen=True)
class Overwritten:
    """A parameter that is written to: whether any change of it is `lost`, else each pass changes it further."""

    location: CodeLocation
    is_lost: bool


def find_overwritten(subject: Subject, written: dict[str, CodeLocation]) -> dict[str, Overwritten]:
    """Try the parameters that forward wrote to on the given lines.

    A projection, such as a clamp or a limit of the norm, keeps what lies within its limits and does nothing the second
    time: it is sound.
    """
    found = {}
    for name, location in written.items():
        parameter = subject.parameters[name]
        if not parameter.requires_grad:
            continue
        own = parameter.data
        before = own.clone()
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(before.shape, generator=generator).to(before) * before.abs().mean().clamp_min(0.1) * 1e-2
        once = _after_a_pass(subject, name, before)
        moved = _after_a_pass(subject, name, once / 2 + noise)
        twice = _after_a_pass(subject, name, once)
        parameter.data = own
        if torch.equal(once, moved):
            found[name] = Overwritten(location, is_lost=True)
        elif not torch.allclose(twice, once, rtol=1e-6):
            found[name] = Overwritten(location, is_lost=False)
    return found


def _after_a_pass(subject: Subject, name: str, start: torch.Tensor) -> torch.Tensor:
    """Return what a pass leaves of a parameter."""
    parameter = subject.parameters[name]
    parameter.data = start.clone()
    with subject.keeping_writes_to(name):
        subject.run()
    return parameter.data.clone()
