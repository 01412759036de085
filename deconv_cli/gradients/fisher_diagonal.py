"""The diagonal of the Fisher matrix and of the generalized Gauss-Newton matrix, from per-sample gradients.

Each diagonal is an average over samples of Σ_k (Jᵀ v_k)², where J is the Jacobian of the outputs of one sample by the
parameters, and the v_k are vectors in the space of its outputs:

* empirical: the gradient of the loss of the given target;
* sampled: the gradient of −log p(y) for targets y drawn from the model (the true Fisher matrix, by Monte Carlo);
* exact: vectors with Σ v vᵀ equal to the covariance of that gradient under the model (the true Fisher matrix), which
  for these likelihoods is the Hessian of −log p(y) by the outputs;
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
from deconv_cli.gradients.losses import NAMED_LOSSES, OF_CLASSES, classes_second, own_loss
from deconv_cli.gradients.subject import Loss, as_scalar, seed_everything


@dataclass(frozen=True)
class Likelihood:
    """The distribution of targets around the outputs of a model.

    Attributes:
        name: for the report.
        draw: draws targets from the model, for the outputs of a batch.
        factor: the loss of torch, summed over a batch, is −log p(target | output) times this factor.
    """

    name: str
    draw: Callable[[torch.Tensor, torch.Generator], torch.Tensor]
    factor: float = 1.0


def _draw_classes(probabilities: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    last = probabilities.movedim(1, -1)
    drawn = torch.multinomial(last.reshape(-1, last.shape[-1]), 1, generator=generator)
    return drawn.reshape(last.shape[:-1])


LIKELIHOODS = {
    "cross-entropy": Likelihood("categorical", lambda output, g: _draw_classes(output.softmax(1), g)),
    "nll": Likelihood("categorical", lambda output, g: _draw_classes(output.exp(), g)),
    "mse": Likelihood(
        "normal with variance 1 (half the sum of squares)",
        lambda output, g: output + torch.randn(output.shape, generator=g, dtype=output.dtype),
        factor=2.0,
    ),
    "bce-with-logits": Likelihood("Bernoulli", lambda output, g: torch.bernoulli(output.sigmoid(), generator=g)),
}
"""Losses that are the negative logarithm of a likelihood."""

_MAX_OUTPUTS = 1024
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
    average = _Average(model, loss_name, loss, kind, n_draws, seed)
    result = average.result
    for batch in batches:
        average.add(batch)
        on_progress(result.n_samples)
    if not result.n_batches:
        raise UsageError("there are no samples to average over.")
    for tensors, n in ((result.diagonal, result.n_samples), (result.batch_mean_squared, result.n_batches)):
        for tensor in tensors.values():
            tensor /= n
    return result


class _Average:
    """Adds up squared gradients in `result`; the arguments are those of `diagonal_fisher`.

    Outputs have their classes along axis 1 once `_output` has arranged them.

    Raises:
        UsageError: the kind needs a likelihood, and the loss has none.
    """

    def __init__(self, model: nn.Module, name: str, function: Loss, kind: str, n_draws: int, seed: int) -> None:
        # Log-probabilities are logits too, by which the Hessian is not zero.
        self._name = "cross-entropy" if (name, kind) == ("nll", "exact") else name
        self._likelihood = LIKELIHOODS.get(self._name)
        if self._likelihood is None and kind in ("sampled", "exact"):
            raise UsageError(
                f"the true Fisher matrix needs a likelihood; the loss must be one of {', '.join(LIKELIHOODS)}, but is "
                f'\'{name}\'; kind="empirical" and kind="ggn" take any loss.'
            )
        self._model = model
        self._function = function
        self._n_draws = n_draws
        self._seed = seed
        self._generator = torch.Generator().manual_seed(seed)
        self._trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        likelihood = self._likelihood.name if self._likelihood else "the loss itself, sample by sample"
        self.result = FisherDiagonal(kind, self._zeros(), self._zeros(), likelihood)

    def _zeros(self) -> Diagonal:
        return {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in self._trainable.items()}

    def add(self, batch: Batch) -> None:
        """Add the samples of a batch."""
        result = self.result
        if batch.target is None and result.kind in ("empirical", "ggn") and self._likelihood is not None:
            raise UsageError(
                'this Fisher matrix needs targets; give them, or sample them from the model: kind="sampled".'
            )
        output = self._output(batch)  # with a graph, since forward may take gradients itself
        if isinstance(output, torch.Tensor) and output.ndim and output.shape[0] == batch.n_samples:
            self._add_squares(batch, self._vectors(output.detach(), batch))
        elif result.kind == "empirical":
            result.loop_reason = "the output is not one tensor with a row for each sample"
            for sample in map(batch.sample, range(batch.n_samples)):
                self._add_gradient(result.diagonal, self._value(self._output(sample), sample.target), None)
        else:
            raise UsageError("this Fisher matrix needs a model whose output is one tensor with a row for each sample.")
        mean = self._batch_mean(self._output(batch), batch)
        if mean.requires_grad:
            self._add_gradient(result.batch_mean_squared, mean, None)
        result.n_samples += batch.n_samples
        result.n_batches += 1
        result.batch_size = max(result.batch_size, batch.n_samples)

    def _output(self, batch: Batch) -> Any:  # noqa: ANN401  whatever the model gives
        seed_everything(self._seed)
        return self._with_classes_second(self._model(*batch.arguments, **batch.keywords), batch.target)

    def _with_classes_second(self, output: Any, target: torch.Tensor | None) -> Any:  # noqa: ANN401
        is_of_classes = isinstance(output, torch.Tensor) and self._name in OF_CLASSES
        return classes_second(output, target) if is_of_classes else output

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
        target = None if batch.target is None else batch.target[:1]  # its shape tells where the classes are
        parameters = {name: p.detach() for name, p in self._trainable.items()}
        n_bytes = sum(p.numel() * p.element_size() for p in parameters.values())
        n_together = max(1, int(_CHUNK_BYTES // max(n_bytes, 1)))

        def squares(sample_vectors: torch.Tensor, *inputs: torch.Tensor) -> Diagonal:
            arguments = tuple(x.unsqueeze(0) for x in inputs[:n_arguments])
            keywords = {name: x.unsqueeze(0) for name, x in zip(names, inputs[n_arguments:], strict=True)}

            def outputs(values: Diagonal) -> torch.Tensor:
                output = functional_call(self._model, values, arguments, keywords)
                return self._with_classes_second(output, target).flatten()

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

    def _value(self, output: torch.Tensor, target: torch.Tensor | None) -> torch.Tensor:
        """Compute the loss of one sample, or −log p(target | output) summed over any batch."""
        if self._likelihood is None:
            return as_scalar(self._function(output, target))
        assert target is not None
        target = target if self._name in OF_CLASSES else _shaped_as(target, output)
        target = target.to(output.dtype) if target.is_floating_point() else target
        return NAMED_LOSSES[self._name](output, target, reduction="sum") / self._likelihood.factor

    def _batch_mean(self, output: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Compute the mean loss of a batch; the kinds `sampled` and `exact` draw the targets from the model.

        A loss without a likelihood is taken as it is.
        """
        if self._likelihood is None:
            return self._value(output, batch.target)
        is_drawn = batch.target is None or self.result.kind in ("sampled", "exact")
        target = self._likelihood.draw(output.detach(), self._generator) if is_drawn else batch.target
        return self._value(output, target) / batch.n_samples

    def _vectors(self, output: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Compute for each of N samples F vectors v with Σ v vᵀ equal to the matrix in the space of its K outputs.

        Returns:
            Shape `(N, F, K)`, for outputs of shape `(N, ...)`.
        """
        kind, n_samples, n_outputs = self.result.kind, output.shape[0], output[0].numel()
        if kind in ("ggn", "exact") and n_outputs > _MAX_OUTPUTS:
            raise UsageError(
                f'{n_outputs} outputs for each sample are too many for kind="{kind}", at most {_MAX_OUTPUTS}; '
                'take kind="sampled" or kind="empirical".'
            )
        if kind == "empirical":
            return self._slopes(output, batch.target).reshape(n_samples, 1, -1)
        target = batch.target
        if kind != "ggn":
            assert self._likelihood is not None
            if kind == "sampled":
                targets = [self._likelihood.draw(output, self._generator) for _ in range(self._n_draws)]
                slopes = [self._slopes(output, target).reshape(n_samples, -1) for target in targets]
                return torch.stack(slopes, 1) / math.sqrt(self._n_draws)
            # The Hessian of these likelihoods does not depend on the target.
            target = self._likelihood.draw(output, torch.Generator(output.device))
        return torch.stack([self._hessian_factors(*row) for row in _rows(output, target)])

    def _slopes(self, output: torch.Tensor, target: torch.Tensor | None) -> torch.Tensor:
        """Differentiate the loss of every sample with respect to its outputs."""
        leaf = output.clone().requires_grad_()
        with torch.enable_grad():
            several = [(leaf, target)] if self._likelihood is not None else _rows(leaf, target)
            total = torch.stack([self._value(*row) for row in several]).sum()
            (slope,) = torch.autograd.grad(total, leaf)
        return slope

    def _hessian_factors(self, output: torch.Tensor, target: torch.Tensor | None) -> torch.Tensor:
        """Factor the Hessian of the loss by the outputs, without its directions of negative curvature."""
        with torch.enable_grad():
            hessian = torch.autograd.functional.hessian(
                lambda flat: self._value(flat.reshape(output.shape), target), output.flatten()
            )
        values, vectors = torch.linalg.eigh(hessian)
        return (vectors * values.clamp_min(0).sqrt()).T


def _shaped_as(target: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Give targets the shape of the outputs, of which axes of length 1 may be missing."""
    if [n for n in target.shape if n != 1] != [n for n in output.shape if n != 1]:
        raise UsageError(
            f"the targets should have the shape of the outputs, {tuple(output.shape)}, but have {tuple(target.shape)}."
        )
    return target.reshape(output.shape)


def _rows(output: torch.Tensor, target: torch.Tensor | None) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    return [(output[i : i + 1], None if target is None else target[i : i + 1]) for i in range(len(output))]
