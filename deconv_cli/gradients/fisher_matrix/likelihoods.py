"""What a loss says of how targets are distributed around the outputs of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True)
class Likelihood:
    """How targets are distributed around the outputs of one sample.

    Attributes:
        name: for the report.
        negative_log: −log p(target | output) of a batch, summed.
        draw: targets drawn from the model, for outputs of a batch.
        factors: for the outputs of one sample, K numbers of any shape: vectors `(F, K)` with Σ v vᵀ equal to the Fisher
            matrix of the outputs.
    """

    name: str
    negative_log: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    draw: Callable[[torch.Tensor, torch.Generator], torch.Tensor]
    factors: Callable[[torch.Tensor], torch.Tensor]


def _draw_classes(probabilities: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    last = probabilities.movedim(1, -1)
    drawn = torch.multinomial(last.reshape(-1, last.shape[-1]), 1, generator=generator)
    return drawn.reshape(last.shape[:-1])


def _class_factors(output: torch.Tensor, *, of_logits: bool) -> torch.Tensor:
    """√p_c times the score of class c, at every site: `(C, ...)` gives `(C · sites, C · sites)`."""
    p = (output.softmax(0) if of_logits else output.exp()).reshape(output.shape[0], -1)
    n_classes, n_sites = p.shape
    scores = torch.eye(n_classes, dtype=p.dtype)[:, :, None] - (p[None] if of_logits else 0.0)
    weighted = p.sqrt()[:, None, :] * scores
    return torch.einsum("cks,st->cskt", weighted, torch.eye(n_sites, dtype=p.dtype)).reshape(-1, n_classes * n_sites)


def _bernoulli_factors(output: torch.Tensor) -> torch.Tensor:
    p = output.sigmoid().flatten()
    return torch.diag((p * (1 - p)).sqrt())


LIKELIHOODS = {
    "cross-entropy": Likelihood(
        "categorical",
        lambda output, target: functional.cross_entropy(output, target, reduction="sum"),
        lambda output, generator: _draw_classes(output.softmax(1), generator),
        lambda output: _class_factors(output, of_logits=True),
    ),
    "nll": Likelihood(
        "categorical",
        lambda output, target: functional.nll_loss(output, target, reduction="sum"),
        lambda output, generator: _draw_classes(output.exp(), generator),
        lambda output: _class_factors(output, of_logits=False),
    ),
    "mse": Likelihood(
        "normal with variance 1 (half the sum of squares)",
        lambda output, target: 0.5 * (output - target).square().sum(),
        lambda output, generator: output + torch.randn(output.shape, generator=generator, dtype=output.dtype),
        lambda output: torch.eye(output.numel(), dtype=output.dtype),
    ),
    "bce-with-logits": Likelihood(
        "Bernoulli",
        lambda output, target: functional.binary_cross_entropy_with_logits(output, target, reduction="sum"),
        lambda output, generator: torch.bernoulli(output.sigmoid(), generator=generator),
        _bernoulli_factors,
    ),
}
"""Losses that are the negative logarithm of a likelihood."""
