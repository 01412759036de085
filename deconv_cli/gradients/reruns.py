"""The loss computed again: same seed, other seed, changed parameters, first optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from deconv_cli.gradients.subject import Subject, as_scalar
from deconv_cli.gradients.tensors import norm_of, tensors_in
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


_N_STEPS = 3

_STEP = 1e-3
"""Each weight moves by this much, as in the first steps of Adam with its usual learning rate."""

_UNEVEN = 1e-6


@dataclass(frozen=True)
class FirstSteps:
    """Gradients after 1, 2, ... steps: norms of the gradients, and of the weights, by parameter."""

    gradients: tuple[Mapping[str, float], ...]
    weights: tuple[Mapping[str, float], ...]

    def steps_until_given(self, name: str) -> int | None:
        """Count the steps after which a gradient is no longer zero; None where it stays so."""
        given = (n for n, norms in enumerate(self.gradients, start=1) if norms.get(name))
        return next(given, None)

    def steps_until_above(self, name: str, reference: str, share: float) -> int | None:
        """Count the steps after which ‖gradient‖ / ‖weight‖ is no longer below a share of that of another weight."""
        for n, (gradients, weights) in enumerate(zip(self.gradients, self.weights, strict=True), start=1):
            ratio, other = (_ratio(gradients, weights, which) for which in (name, reference))
            if ratio is not None and other is not None and ratio >= share * other:
                return n
        return None


def _ratio(gradients: Mapping[str, float], weights: Mapping[str, float], name: str) -> float | None:
    return gradients[name] / weights[name] if name in gradients and weights[name] else None


def is_uneven(subject: Subject, backward: BackwardTrace | None) -> bool:
    """Return whether some gradient is zero, or tiny beside another, so that steps are worth taking."""
    given = {name: g for name, g in (backward.gradients if backward else {}).items() if g is not None}
    if not any(Magnitude.of([gradient]).largest for gradient in given.values()):
        return False
    if any(Magnitude.of([gradient]).is_zero for gradient in given.values()):
        return True
    norms = [(norm_of(gradient), norm_of(subject.parameters[name])) for name, gradient in given.items()]
    ratios = [gradient / weight for gradient, weight in norms if weight]
    return bool(ratios) and min(ratios) < _UNEVEN * max(ratios)


def take_first_steps(subject: Subject) -> FirstSteps | None:
    """Take a few steps, measure the gradients after each, and put the weights back; None where a step fails."""
    kept = {name: parameter.data.clone() for name, parameter in subject.trainable.items()}
    gradients, weights = [], []
    try:
        found = _gradients(subject)
        for _ in range(_N_STEPS):
            for name, gradient in found.items():
                subject.parameters[name].data.sub_(gradient.sgn(), alpha=_STEP)
            found = _gradients(subject)
            gradients.append({name: norm_of(gradient) for name, gradient in found.items()})
            weights.append({name: norm_of(subject.parameters[name]) for name in found})
    except RuntimeError:
        return None
    finally:
        for name, data in kept.items():
            subject.parameters[name].data.copy_(data)
    return FirstSteps(tuple(gradients), tuple(weights))


def _gradients(subject: Subject) -> dict[str, torch.Tensor]:
    loss = as_scalar(subject.run()[1])
    found = torch.autograd.grad(loss, list(subject.trainable.values()), allow_unused=True)
    given = zip(subject.trainable, found, strict=True)
    return {name: g.to_dense() if g.is_sparse else g for name, g in given if g is not None}
