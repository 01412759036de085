"""All that the rules know about a model; they take some measurements, such as first optimizer steps, only on demand."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from deconv_cli.gradients.double_precision import DoubleEvidence
from deconv_cli.gradients.finite_differences import Comparison, Outcome
from deconv_cli.gradients.handwritten import WrongInput
from deconv_cli.gradients.nested_tensors import norm_of
from deconv_cli.gradients.other_data import BatchIndependence, find_reached_by_others
from deconv_cli.gradients.subject import Subject, as_scalar
from deconv_cli.gradients.tracing.backward_trace import BackwardTrace, Magnitude, Node, differentiate, nodes_below
from deconv_cli.gradients.tracing.code_location import CodeLocation, Operation
from deconv_cli.gradients.tracing.forward_trace import ForwardTrace
from deconv_cli.gradients.tracing.interception import trace_forward
from deconv_cli.gradients.tracing.operations import FILLING

_BY_DATA = ("Gather", "Index", "MaskedSelect", "Take", "Topk")
_CHOOSING = (*_BY_DATA, "Cat", "Select", "Slice", "Split", "Stack", "Unbind")
"""Nodes of autograd's graph that choose values, those in `_BY_DATA` by the data; the other values get no gradient."""


def _reads_nothing(node: Node) -> bool:
    """Return whether an operation reads a tensor without elements, as where a mask chooses nothing."""
    made = [tensor for child, _ in node.next_functions for tensor in getattr(child, "_input_metadata", ())]
    return any(0 in tensor.shape for tensor in made)


@dataclass(frozen=True, eq=False)
class Evidence:
    """All measurements of a model; parameters are keyed by their names.

    Attributes:
        backward: the backward pass in the model's own precision; without gradients where the loss reaches no parameter.
        double: comparison with finite differences, empty where it was not possible.
        losses: of two runs with one seed.
        budget: seconds for finite differences.
    """

    subject: Subject
    weight_norms: Mapping[str, float]
    forward: ForwardTrace
    backward: BackwardTrace
    losses: tuple[float, float]
    double: DoubleEvidence
    batch: BatchIndependence
    budget: float

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The parameters of the model."""
        return self.subject.parameters

    @property
    def is_noisy(self) -> bool:
        """Whether one seed gives different losses."""
        return not is_same(*self.losses)

    @cached_property
    def origins(self) -> list[Operation]:
        """The operations where NaN or infinity arises; an infinite mask does not count, NaN made of two does."""
        of_finite, of_infinite = list[Operation](), list[Operation]()
        for name, operation, inputs, outputs in trace_forward(self.subject, keep_tensors=True).computed:
            given, made = ([t for t in tensors if t.is_floating_point()] for tensors in (inputs, outputs))
            if name in FILLING:
                continue
            if all(bool(t.isfinite().all()) for t in given) and not all(bool(t.isfinite().all()) for t in made):
                of_finite.append(operation)
            elif any(bool(t.isnan().any()) for t in made) and not any(bool(t.isnan().any()) for t in given):
                of_infinite.append(operation)
        return of_finite or of_infinite

    @cached_property
    def first_steps(self) -> list[Norms]:
        """Gradients after the first optimizer steps, empty where the loss is noisy or has no gradient."""
        return [] if self.is_noisy or self.backward.error is not None else take_first_steps(self.subject)

    @cached_property
    def reached_by_others(self) -> frozenset[str]:
        """Parameters without a gradient here that other data, or other random numbers, give one."""
        return find_reached_by_others(self.subject, self.backward)

    @cached_property
    def _chosen_by_data(self) -> frozenset[Node]:
        """The nodes of autograd's graph whose values an index or a mask chooses among."""
        start = self.forward.loss.grad_fn
        nodes = nodes_below([start] if start is not None else [])
        return frozenset(nodes_below([node for node in nodes if type(node).__name__.startswith(_BY_DATA)]))

    def is_left_out_by_data(self, name: str) -> bool:
        """Return whether a gradient is zero only because an index or a mask chooses other values, or none at all."""
        nodes = self.backward.origins(self.parameters[name], lambda magnitude: magnitude.is_zero)
        chosen = {node for node in self._chosen_by_data if type(node).__name__.startswith(_CHOOSING)}
        return bool(nodes) and all(node in chosen or _reads_nothing(node) for node in nodes)

    @property
    def is_loss_finite(self) -> bool:
        """Whether the loss is neither NaN nor infinite."""
        return bool(self.forward.loss.detach().isfinite())

    def gradient(self, name: str) -> torch.Tensor | None:
        """Return the gradient of a parameter, None where autograd gives none."""
        return self.backward.gradients.get(name)

    def sharpest_gradient(self, name: str) -> torch.Tensor | None:
        """Return a finite gradient, in double precision if it was computed there, else None."""
        if name in self.double.results or name in self.double.constants:
            return self.double.backward.gradients[name]
        found = self.backward.magnitudes.get(name)
        return self.gradient(name) if found is not None and found.is_finite else None

    def gradient_norm(self, name: str) -> float | None:
        """Measure ‖gradient‖; None without a finite gradient."""
        gradient = self.sharpest_gradient(name)
        return norm_of(gradient) if gradient is not None else None

    def is_reached(self, name: str) -> bool:
        """Return whether autograd reaches a parameter from the loss."""
        return bool(self.forward.reached & self.forward.bit(name))

    def module_of(self, name: str) -> CodeLocation:
        """Return the module that owns a parameter."""
        return CodeLocation(module=name.rpartition(".")[0])

    @cached_property
    def _without_hooks(self) -> list[tuple[Callable[..., object], dict[str, torch.Tensor]]]:
        """The hooks on parameters and on modules, and all gradients without each."""
        of_modules = [d for m in self.subject.model.modules() for d in (m._backward_hooks, m._backward_pre_hooks)]
        found: list[tuple[Callable[..., object], dict[str, torch.Tensor]]] = []
        for hooks in (*(p._backward_hooks or {} for p in self.parameters.values()), *of_modules):
            for key, hook in hooks.items():
                hooks[key] = lambda *_given: None
                try:
                    found.append((hook, _gradients(self.subject)))
                finally:
                    hooks[key] = hook
        return found

    def changing_hooks(self, name: str) -> list[Callable[..., object]]:
        """List the hooks on parameters and on modules without which the gradient of a parameter is another one."""
        given, found = _gradients(self.subject).get(name) if self._without_hooks else None, []
        for hook, gradients in self._without_hooks:
            without = gradients.get(name)
            if given is None or without is None or norm_of(given - without) > _ROUNDING * norm_of(given):
                found.append(hook)
        return found

    def comparison(self, name: str) -> Comparison | None:
        """Return how a gradient compares with finite differences, None where it was not compared."""
        return self.double.results.get(name)

    def differs(self, name: str) -> bool:
        """Return whether a gradient differs from finite differences."""
        found = self.comparison(name)
        return found is not None and found.outcome is Outcome.DIFFERS

    def origins_of(self, name: str, is_faulty: Callable[[Magnitude], bool]) -> list[Operation]:
        """List the operations at which the gradient of a parameter becomes faulty."""
        return [
            self.forward.graph.operation_of(node) for node in self.backward.origins(self.parameters[name], is_faulty)
        ]

    def wrong_inputs_before(self, name: str) -> list[WrongInput]:
        """List the hand-written backwards whose wrong gradient reaches a parameter."""
        return [item for item in self.double.wrong_inputs if name in item.parameters]

    @cached_property
    def layers(self) -> dict[str, tuple[int, float]]:
        """Distance and ‖gradient‖ / ‖weight‖ of the weights with a sound gradient, the nearest to the loss first."""
        layers = []
        for name, parameter in self.parameters.items():
            readers = self.double.backward.readers_of(parameter)
            norm, weight_norm = self.gradient_norm(name), self.weight_norms[name]
            if parameter.ndim >= 2 and readers and norm and weight_norm and self._is_sound(name):
                # Autograd numbers its nodes in the order of the forward pass.
                order = min(reader._sequence_nr() for reader, _ in readers)
                layers.append((-order, name, norm / weight_norm))
        return {name: (distance, ratio) for distance, name, ratio in sorted(layers)}

    def _is_sound(self, name: str) -> bool:
        return name in self.double.results and not self.differs(name) and not self.wrong_inputs_before(name)


_ROUNDING = 1e-5
"""A smaller relative difference of two gradients comes from rounding."""

_DOUBLE_ROUNDING = 1e-9
"""The same for two losses in float64."""

_CHANGES = (1e-3, 0.1, 1.0, 10.0)
"""Changes of a parameter in units of its size."""


def repeat(subject: Subject, forward: ForwardTrace) -> tuple[float, float]:
    """Compute the loss twice with one seed."""
    first, second = float(forward.loss.detach()), subject.value()
    if is_same(first, second):
        return first, second
    # A watched pass may use other kernels of torch and round differently.
    return second, subject.value()


def is_same(first: float, second: float) -> bool:
    """Return whether two losses are one number, or both NaN."""
    return first == second or (math.isnan(first) and math.isnan(second))


def loss_changes_with(subject: Subject, name: str) -> bool:
    """Return whether the loss changes with a parameter, changed by little or by much, or can no longer be computed.

    In float64, where the model runs in it, a change by rounding alone does not count.
    """
    try:
        with subject.in_double():
            return _changes_with(subject, name, subject.value(), _DOUBLE_ROUNDING)
    except Exception:  # noqa: BLE001  the model may not run in float64
        return _changes_with(subject, name, subject.value(), 0.0)


def _changes_with(subject: Subject, name: str, before: float, rounding: float) -> bool:
    parameter = subject.parameters[name]
    kept = parameter.data.clone()
    generator = torch.Generator().manual_seed(1)
    try:
        for size in _CHANGES:
            parameter.data.copy_(kept + size * _noise_like(kept, generator))
            if not abs(subject.value() - before) <= rounding * max(abs(before), 1e-6):
                return True
    except Exception:  # noqa: BLE001  as where the parameter is a length, which another one does not fit
        return True
    finally:
        parameter.data.copy_(kept)
    return False


def _noise_like(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(values.shape, generator=generator).to(values) * values.abs().mean().clamp_min(0.1)


def loses_writes(subject: Subject, name: str) -> bool:
    """Return whether forward sets a parameter to the same values whatever they were.

    A projection, such as a clamp, depends on the values, so it is no fault.
    """
    parameter = subject.parameters[name]
    own = parameter.data
    noise = _noise_like(own, torch.Generator().manual_seed(0)) * 1e-2
    once = _after_a_pass(subject, name, own)
    moved = _after_a_pass(subject, name, once / 2 + noise)
    parameter.data = own
    return torch.equal(once, moved)


def _after_a_pass(subject: Subject, name: str, start: torch.Tensor) -> torch.Tensor:
    parameter = subject.parameters[name]
    parameter.data = start.clone()
    with (
        subject.with_fields(written=subject.written - {name}),
        contextlib.suppress(Exception),
    ):  # a model may refuse other values
        subject.run()
    return parameter.data.clone()


_N_STEPS = 3
_STEP = 1e-3
"""Each weight moves by this much, as in the first steps of Adam with its usual learning rate."""

Norms = dict[str, tuple[float, float]]
"""‖gradient‖ and ‖weight‖ by parameter."""


def take_first_steps(subject: Subject) -> list[Norms]:
    """Take a few optimizer steps, measure the norms after each, and restore the weights; empty if a step fails.

    A head or a residual branch that starts at zero blocks the gradient of the layers behind it until the first step.
    """
    kept = {name: parameter.data.clone() for name, parameter in subject.trainable.items()}
    steps = []
    try:
        found = _gradients(subject)
        for _ in range(_N_STEPS):
            for name, gradient in found.items():
                subject.parameters[name].data.sub_(gradient.sgn(), alpha=_STEP)
            found = _gradients(subject)
            steps.append({name: (norm_of(g), norm_of(subject.parameters[name])) for name, g in found.items()})
    except Exception:  # noqa: BLE001  a model may refuse other values
        return []
    finally:
        for name, data in kept.items():
            subject.parameters[name].data.copy_(data)
    return steps


def _gradients(subject: Subject) -> dict[str, torch.Tensor]:
    found = differentiate(as_scalar(subject.run()[1]), subject.trainable)
    return {name: g.to_dense() if g.is_sparse else g for name, g in found.items() if g is not None}
