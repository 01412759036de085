"""The loss of single samples, the likelihood behind it, and the vectors that Fisher matrices are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from deconv_cli.errors import UsageError
from deconv_cli.gradients.inputs import Batch
from deconv_cli.gradients.losses import OF_CLASSES, classes_are_last
from deconv_cli.gradients.subject import Loss, as_scalar


@dataclass(frozen=True)
class Likelihood:
    """The distribution of targets around the outputs of a model.

    Attributes:
        name: for the report.
        negative_log: −log p(target | output), summed over a batch.
        draw: draws targets from the model, for the outputs of a batch.
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

KINDS = ("empirical", "sampled", "exact", "ggn")
_MAX_OUTPUTS = 4096


class SampleLoss:
    """A loss, with its likelihood where it has one; the arguments are those of `diagonal_fisher`.

    Raises:
        UsageError: there is no such kind, or it needs a likelihood and the loss has none.
    """

    def __init__(self, name: str, function: Loss, kind: str, n_draws: int, generator: torch.Generator) -> None:
        if kind not in KINDS:
            raise UsageError(f"the kind of Fisher matrix must be one of {', '.join(KINDS)}, but is '{kind}'.")
        self.likelihood = LIKELIHOODS.get(name)
        if self.likelihood is None and kind in ("sampled", "exact"):
            raise UsageError(
                f"the true Fisher matrix needs a likelihood; the loss must be one of {', '.join(LIKELIHOODS)}, but is "
                f'\'{name}\'; kind="empirical" and kind="ggn" take any loss.'
            )
        self.kind = kind
        self.description = self.likelihood.name if self.likelihood else "the loss itself, sample by sample"
        self._has_classes = name in OF_CLASSES
        self._are_classes_last = False
        self._function = function
        self._n_draws = n_draws
        self._generator = generator

    def find_classes(self, output: torch.Tensor, target: torch.Tensor | None) -> None:
        """Find the axis of classes of the outputs: axis 1, or the last of three."""
        self._are_classes_last = self._has_classes and classes_are_last(output, target)

    def value(self, output: torch.Tensor, target: torch.Tensor | None) -> torch.Tensor:
        """Compute the loss of one sample, or −log p(target | output) summed over any batch."""
        if self.likelihood is None:
            return as_scalar(self._function(output, target))
        assert target is not None
        target = target.to(output.dtype) if target.is_floating_point() else target
        return self.likelihood.negative_log(self._classes_second(output), target)

    def batch_mean(self, output: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Compute the mean loss of a batch; the kinds `sampled` and `exact` draw the targets from the model.

        A loss without a likelihood is taken as it is.
        """
        if self.likelihood is None:
            return self.value(output, batch.target)
        is_drawn = batch.target is None or self.kind in ("sampled", "exact")
        target = self._draw(output.detach(), self.likelihood) if is_drawn else batch.target
        return self.value(output, target) / batch.n_samples

    def vectors(self, output: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Compute for each of N samples F vectors v with Σ v vᵀ equal to the matrix in the space of its K outputs.

        Returns:
            Shape `(N, F, K)`, for outputs of shape `(N, ...)`.
        """
        n_samples, n_outputs = output.shape[0], output[0].numel()
        if self.kind in ("ggn", "exact") and n_outputs > _MAX_OUTPUTS:
            raise UsageError(
                f'{n_outputs} outputs for each sample are too many for kind="{self.kind}", at most {_MAX_OUTPUTS}; '
                'take kind="sampled" or kind="empirical".'
            )
        if self.kind == "empirical":
            return self._slopes(output, batch.target).reshape(n_samples, 1, -1)
        if self.kind == "ggn":
            samples = [(output[i : i + 1], batch.sample(i).target) for i in range(n_samples)]
            return torch.stack([self._hessian_factors(*sample) for sample in samples])
        assert self.likelihood is not None
        if self.kind == "sampled":
            targets = [self._draw(output, self.likelihood) for _ in range(self._n_draws)]
            slopes = [self._slopes(output, target).reshape(n_samples, -1) for target in targets]
            return torch.stack(slopes, 1) / math.sqrt(self._n_draws)
        arranged = self._classes_second(output)
        factors = torch.stack([self.likelihood.factors(row) for row in arranged])
        # Back to the order of the model's own output.
        in_order = factors.unflatten(-1, arranged.shape[1:])
        return (in_order.movedim(2, -1) if self._are_classes_last else in_order).flatten(2)

    def _draw(self, output: torch.Tensor, likelihood: Likelihood) -> torch.Tensor:
        return likelihood.draw(self._classes_second(output), self._generator)

    def _classes_second(self, output: torch.Tensor) -> torch.Tensor:
        """Move the axis of classes to axis 1."""
        return output.movedim(-1, 1) if self._are_classes_last else output

    def _slopes(self, output: torch.Tensor, target: torch.Tensor | None) -> torch.Tensor:
        """Differentiate the loss of every sample with respect to its outputs."""
        leaf = output.clone().requires_grad_()
        with torch.enable_grad():
            if self.likelihood is not None:
                total = self.value(leaf, target)
            else:
                rows = [(leaf[i : i + 1], None if target is None else target[i : i + 1]) for i in range(len(leaf))]
                total = torch.stack([self.value(*row) for row in rows]).sum()
            (slope,) = torch.autograd.grad(total, leaf)
        return slope

    def _hessian_factors(self, output: torch.Tensor, target: torch.Tensor | None) -> torch.Tensor:
        """Factor the Hessian of the loss by the outputs, without its directions of negative curvature."""
        with torch.enable_grad():
            hessian = torch.autograd.functional.hessian(
                lambda flat: self.value(flat.reshape(output.shape), target), output.flatten()
            )
        values, vectors = torch.linalg.eigh(hessian)
        return (vectors * values.clamp_min(0).sqrt()).T
