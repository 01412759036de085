"""What is known of a script that trains, once it was watched: the weights of the pass, and what optimizers did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from deconv_cli.gradients.gradient_report import GradientReport
from deconv_cli.gradients.training.training_events import OptimizerStep, TrainingEvents


@dataclass(frozen=True, eq=False)
class TrainingEvidence:
    """All that was seen.

    Attributes:
        report: what was found for the passes themselves.
        weights: the trainable ones of the passes, by name.
        events: what happened afterwards.
    """

    report: GradientReport
    weights: Mapping[str, torch.Tensor]
    events: TrainingEvents

    @property
    def with_gradient(self) -> dict[str, torch.Tensor]:
        """The weights to which a pass gives a gradient other than zero."""
        given = {finding.name for finding in self.report.parameters if finding.gradient_norm}
        return {name: weight for name, weight in self.weights.items() if name in given}

    @property
    def first_steps(self) -> list[OptimizerStep]:
        """The first step of each optimizer."""
        first: dict[int, OptimizerStep] = {}
        for step in self.events.steps:
            first.setdefault(step.optimizer, step)
        return list(first.values())
