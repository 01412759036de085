"""The diagonal of the Fisher matrix and of the generalized Gauss-Newton matrix, from per-sample gradients.

Each diagonal is an average over samples of Σ_k (Jᵀ v_k)², where J is the Jacobian of the outputs of one sample by the
parameters, and the v_k are vectors in the space of its outputs:

* empirical: the gradient of the loss of the given target;
* sampled: the gradient of −log p(y) for targets y drawn from the model (the true Fisher matrix, by Monte Carlo);
* exact: vectors with Σ v vᵀ equal to the covariance of that gradient under the model (the true Fisher matrix);
* ggn: vectors with Σ v vᵀ equal to the Hessian of the loss by the outputs.

The square of the mean gradient of a batch is no such diagonal: near an optimum it is close to zero (Kunstner, Hennig
and Balles, "Limitations of the empirical Fisher approximation", NeurIPS 2019; van de Ven, "On the computation of the
Fisher information in continual learning", 2025).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, vjp, vmap

from deconv_cli.errors import UsageError
from deconv_cli.gradients.findings import first_line
from deconv_cli.gradients.inputs import Batch
from deconv_cli.gradients.likelihoods import LIKELIHOODS, SampleLoss
from deconv_cli.gradients.losses import own_loss
from deconv_cli.gradients.subject import Loss, seed_everything

_CHUNK_BYTES = 256 * 2**20

Diagonal = dict[str, torch.Tensor]


@dataclass(eq=False)
class FisherDiagonal:
    """A diagonal by parameter, in float64, averaged over the samples.

    Attributes:
        batch_mean_squared: the mean over batches of the squared mean gradient, often confused with the diagonal.
        likelihood: the distribution of targets that the loss belongs to.
        batch_size: samples in the largest of the batches.
        loop_reason: why samples were computed one by one, None where they were vectorized.
    """

    kind: str
    diagonal: Diagonal
    batch_mean_squared: Diagonal
    likelihood: str
    n_samples: int = 0
    n_batches: int = 0
    batch_size: int = 0
    loop_reason: str | None = None

    @property
    def trace(self) -> float:
        """Sum of the diagonal."""
        return math.fsum(float(tensor.sum()) for tensor in self.diagonal.values())

    @property
    def batch_mean_squared_trace(self) -> float:
        """Sum of the squared batch means."""
        return math.fsum(float(tensor.sum()) for tensor in self.batch_mean_squared.values())


def refuse_projection(output: Any) -> None:  # noqa: ANN401  whatever the model gives
    """Refuse the projection of the output as a loss: it has no targets.

    Raises:
        UsageError: the model does not compute its loss itself.
    """
    if own_loss(output) is None:
        raise UsageError(
            "a Fisher matrix needs the likelihood of the targets, which the projection of the output does not define; "
            f'choose a loss with a likelihood, such as loss="cross-entropy" ({", ".join(LIKELIHOODS)}), or write a '
            "loss function."
        )


def diagonal_fisher(
    model: nn.Module,
    batches: Iterable[Batch],
    loss_name: str,
    loss: Loss,
    *,
    kind: str = "empirical",
    n_draws: int = 1,
    seed: int = 0,
    on_progress: Callable[[int], None] = lambda _n: None,
) -> FisherDiagonal:
    """Average squared per-sample gradients over batches.

    Args:
        model: in evaluation mode; batch normalization by the batch would tie the samples together.
        batches: samples with targets.
        loss_name: a name of `LIKELIHOODS` for the true Fisher matrix, anything else for a loss of the user's.
        loss: called with the output for a batch of one and its target, where the name is no likelihood.
        kind: `empirical`, `sampled`, `exact` or `ggn`.
        n_draws: targets drawn for each sample, for `sampled`.
        seed: of the drawn targets.
        on_progress: called with how many samples are done.

    Raises:
        UsageError: the loss has no likelihood, or targets are missing.
    """
    sample_loss = SampleLoss(loss_name, loss, kind, n_draws, torch.Generator().manual_seed(seed))
    total = _Total(model, sample_loss, seed)
    result = total.result
    for batch in batches:
        total.add(batch, is_projection=loss_name == "projection")
        on_progress(result.n_samples)
    if not result.n_batches:
        raise UsageError("there are no samples to average over.")
    for tensors, n in ((result.diagonal, result.n_samples), (result.batch_mean_squared, result.n_batches)):
        for tensor in tensors.values():
            tensor /= n
    return result


class _Total:
    """Adds up squared gradients in `result`."""

    def __init__(self, model: nn.Module, loss: SampleLoss, seed: int) -> None:
        self._model = model
        self._loss = loss
        self._seed = seed
        self._trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.result = FisherDiagonal(loss.kind, self._zeros(), self._zeros(), loss.description)

    def _zeros(self) -> Diagonal:
        return {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in self._trainable.items()}

    def add(self, batch: Batch, *, is_projection: bool) -> None:
        """Add the samples of a batch."""
        loss, result = self._loss, self.result
        if batch.target is None and loss.kind in ("empirical", "ggn") and loss.likelihood is not None:
            raise UsageError(
                'this Fisher matrix needs targets; give them, or sample them from the model: kind="sampled".'
            )
        # With a graph, since forward may take gradients itself.
        output = self._output(batch)
        if is_projection:
            refuse_projection(output)
        if isinstance(output, torch.Tensor):
            loss.find_classes(output, batch.target)
        if isinstance(output, torch.Tensor) and output.ndim and output.shape[0] == batch.n_samples:
            self._add_squares(batch, loss.vectors(output.detach(), batch))
        elif loss.kind == "empirical":
            result.loop_reason = "the output is not one tensor with a row for each sample"
            for sample in map(batch.sample, range(batch.n_samples)):
                self._add_gradient(result.diagonal, loss.value(self._output(sample), sample.target), None)
        else:
            raise UsageError("this Fisher matrix needs a model whose output is one tensor with a row for each sample.")
        mean = loss.batch_mean(self._output(batch), batch)
        if mean.requires_grad:
            self._add_gradient(result.batch_mean_squared, mean, None)
        result.n_samples += batch.n_samples
        result.n_batches += 1
        result.batch_size = max(result.batch_size, batch.n_samples)

    def _output(self, batch: Batch) -> Any:  # noqa: ANN401  whatever the model gives
        seed_everything(self._seed)
        return self._model(*batch.arguments, **batch.keywords)

    def _add_squares(self, batch: Batch, vectors: torch.Tensor) -> None:
        """Pull vectors of shape `(N, F, K)` back to the parameters, and add their squares."""
        result = self.result
        if result.loop_reason is None:
            try:
                squares = self._vectorized(batch, vectors)
            except RuntimeError as error:
                result.loop_reason = first_line(error)[:160]
            else:
                for name, square in squares.items():
                    result.diagonal[name] += square
                return
        for i in range(batch.n_samples):
            output = self._output(batch.sample(i)).flatten()
            for vector in vectors[i]:
                self._add_gradient(result.diagonal, output, vector)

    def _vectorized(self, batch: Batch, vectors: torch.Tensor) -> Diagonal:
        names, n_arguments = list(batch.keywords), len(batch.arguments)
        parameters = {name: p.detach() for name, p in self._trainable.items()}
        n_bytes = sum(p.numel() * p.element_size() for p in parameters.values())
        n_together = max(1, int(_CHUNK_BYTES // max(n_bytes, 1)))

        def squares(sample_vectors: torch.Tensor, *inputs: torch.Tensor) -> Diagonal:
            arguments = tuple(x.unsqueeze(0) for x in inputs[:n_arguments])
            keywords = {name: x.unsqueeze(0) for name, x in zip(names, inputs[n_arguments:], strict=True)}

            def outputs(values: Diagonal) -> torch.Tensor:
                return functional_call(self._model, values, arguments, keywords).flatten()

            pull_back = vjp(outputs, parameters)[1]
            pulled = vmap(lambda v: pull_back(v)[0], chunk_size=n_together)(sample_vectors)
            return {name: gradient.abs().square().sum(0) for name, gradient in pulled.items()}

        inputs = (*batch.arguments, *batch.keywords.values())
        seed_everything(self._seed)
        chunk = max(1, n_together // vectors.shape[1])
        every = vmap(squares, chunk_size=chunk, randomness="error")(vectors, *inputs)
        return {name: square.double().sum(0) for name, square in every.items()}

    def _add_gradient(self, total: Diagonal, head: torch.Tensor, vector: torch.Tensor | None) -> None:
        wanted = list(self._trainable.values())
        found = torch.autograd.grad(head, wanted, vector, retain_graph=vector is not None, allow_unused=True)
        for name, gradient in zip(self._trainable, found, strict=True):
            if gradient is not None:
                total[name] += gradient.abs().double().square()
