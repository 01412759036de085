"""Everything that the rules know about a model; further measurements are taken once a rule asks for them."""

from __future__ import annotations

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
from deconv_cli.gradients.reruns import (
    FirstSteps,
    find_moved_from_outside,
    is_same,
    loses_writes,
    take_first_steps,
)
from deconv_cli.gradients.subject import Subject
from deconv_cli.gradients.tracing.backward_trace import BackwardTrace, Magnitude, Node, nodes_below
from deconv_cli.gradients.tracing.code_location import CodeLocation
from deconv_cli.gradients.tracing.forward_trace import ForwardTrace, Operation
from deconv_cli.gradients.tracing.interception import trace_forward

_BY_DATA = ("Gather", "Index", "MaskedSelect", "Take", "Topk")
_CHOOSING = (*_BY_DATA, "Cat", "Select", "Slice", "Split", "Stack", "Unbind")
"""Nodes of autograd's graph whose gradient is zero where other values were chosen; the data make the first choices."""


@dataclass(frozen=True)
class Layer:
    """A weight with a sound gradient: its distance from the loss, for ordering, and ‖gradient‖ / ‖weight‖."""

    distance: int
    name: str
    ratio: float


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
        wrong_inputs: hand-written backwards with a wrong gradient.
        budget: seconds for finite differences.
    """

    subject: Subject
    weight_norms: Mapping[str, float]
    forward: ForwardTrace
    backward: BackwardTrace
    losses: tuple[float, float]
    double: DoubleEvidence
    wrong_inputs: tuple[WrongInput, ...]
    batch: BatchIndependence
    budget: float
    notes: tuple[str, ...]
    not_checked: tuple[str, ...]

    @property
    def model(self) -> nn.Module:
        """The model."""
        return self.subject.model

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
        trace = trace_forward(self.subject, find_origins=True)
        return trace.origins or trace.nan_origins

    @cached_property
    def moved_from_outside(self) -> frozenset[str]:
        """Parameters without a gradient that left torch as plain values, and on which the loss depends."""
        return find_moved_from_outside(self.subject, self.forward, self.backward)

    @cached_property
    def overwritten(self) -> dict[str, CodeLocation]:
        """The parameters that forward resets, which loses any change by an optimizer; each with its line."""
        trained = [name for name in sorted(self.subject.written) if self.parameters[name].requires_grad]
        writes = self.forward.parameter_writes
        return {name: writes[self.forward.bit(name)] for name in trained if loses_writes(self.subject, name)}

    @cached_property
    def first_steps(self) -> FirstSteps:
        """Gradients after the first optimizer steps, empty where the loss is noisy or has no gradient."""
        is_certain = not self.is_noisy and self.backward.error is None
        return take_first_steps(self.subject) if is_certain else FirstSteps([], [])

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

    def comparison(self, name: str) -> Comparison | None:
        """Return how a gradient compares with finite differences, None where it was not compared."""
        return self.double.results.get(name)

    def outcome(self, name: str) -> Outcome | None:
        """Return whether a gradient agrees with finite differences, None where it was not compared."""
        found = self.comparison(name)
        return found.outcome if found is not None else None

    def differs(self, name: str) -> bool:
        """Return whether a gradient differs from finite differences."""
        return self.outcome(name) is Outcome.DIFFERS

    def origins_of(self, name: str, is_faulty: Callable[[Magnitude], bool]) -> list[Operation]:
        """List the operations at which the gradient of a parameter becomes faulty."""
        return self.forward.operations(self.backward.origins(self.parameters[name], is_faulty))

    def wrong_inputs_before(self, name: str) -> list[WrongInput]:
        """List the hand-written backwards whose wrong gradient reaches a parameter."""
        return [item for item in self.wrong_inputs if name in item.parameters]

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The weights with a sound gradient, the nearest to the loss first."""
        layers = []
        for name, parameter in self.parameters.items():
            readers = self.double.backward.readers_of(parameter)
            norm, weight_norm = self.gradient_norm(name), self.weight_norms[name]
            if parameter.ndim >= 2 and readers and norm and weight_norm and self._is_sound(name):
                # Autograd numbers its nodes in the order of the forward pass.
                order = min(reader._sequence_nr() for reader, _ in readers)
                layers.append(Layer(-order, name, norm / weight_norm))
        return tuple(sorted(layers, key=lambda layer: (layer.distance, layer.name, layer.ratio)))

    def _is_sound(self, name: str) -> bool:
        return name in self.double.results and not self.differs(name) and not self.wrong_inputs_before(name)
