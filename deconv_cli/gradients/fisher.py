"""The diagonal of the Fisher matrix and of the generalized Gauss-Newton matrix, from per-sample gradients.

All of them are averages over samples of Σ_k (Jᵀ v_k)², where J is the Jacobian of the outputs of one sample by the
parameters, and the v_k are vectors in the space of its outputs:

* empirical: the gradient of the loss of the given target;
* sampled: the gradient of −log p(y) for targets y drawn from the model (the true Fisher matrix, by Monte Carlo);
* exact: vectors with Σ v vᵀ equal to the covariance of that gradient under the model (the true Fisher matrix);
* ggn: vectors with Σ v vᵀ equal to the Hessian of the loss by the outputs.

The square of the mean gradient of a batch is none of them: at an optimum the mean is near zero, and so is its square
(Kunstner, Hennig and Balles, "Limitations of the empirical Fisher approximation", NeurIPS 2019; van de Ven, "On the
computation of the Fisher information in continual learning", 2025).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, vjp, vmap
from torch.nn import functional

from deconv_cli.errors import UsageError
from deconv_cli.gradients.losses import OF_CLASSES, classes_are_last
from deconv_cli.gradients.subject import Loss, as_scalar, seed_everything

KINDS = ("empirical", "sampled", "exact", "ggn")
_CHUNK_BYTES = 256 * 2**20
_MAX_OUTPUTS = 4096


@dataclass(frozen=True)
class Batch:
    """Samples of inputs along the first axis, with their targets.

    Attributes:
        arguments: positional inputs of forward.
        keywords: inputs by name.
        target: targets, or None.
    """

    arguments: tuple[torch.Tensor, ...]
    keywords: dict[str, torch.Tensor]
    target: torch.Tensor | None

    @property
    def n_samples(self) -> int:
        """How many samples there are."""
        return int((*self.arguments, *self.keywords.values())[0].shape[0])

    def sample(self, index: int) -> Batch:
        """Take one sample, as a batch of one."""
        return self.map(lambda tensor: tensor[index : index + 1])

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """Change every tensor."""
        return Batch(
            tuple(change(tensor) for tensor in self.arguments),
            {name: change(tensor) for name, tensor in self.keywords.items()},
            None if self.target is None else change(self.target),
        )


@dataclass(frozen=True)
class Likelihood:
    """What a loss says of how targets are distributed around the outputs of one sample.

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


@dataclass
class Fisher:
    """A diagonal, and what is often taken for it.

    Attributes:
        kind: which matrix.
        diagonal: by parameter, float64 sums divided by the number of samples.
        batch_mean_squared: the mean over batches of the squared mean gradient: the mistake, for comparison.
        likelihood: what the loss was taken for.
        n_samples: how many samples were averaged.
        batch_size: samples in a batch of the mistake.
        loop_reason: why samples were taken one by one, None where they were vectorized.
    """

    kind: str
    diagonal: dict[str, torch.Tensor]
    batch_mean_squared: dict[str, torch.Tensor]
    likelihood: str
    n_samples: int = 0
    batch_size: int = 0
    loop_reason: str | None = None

    @property
    def trace(self) -> float:
        """Sum of the diagonal."""
        return math.fsum(float(tensor.sum()) for tensor in self.diagonal.values())

    @property
    def mistaken_trace(self) -> float:
        """Sum of the squared batch means."""
        return math.fsum(float(tensor.sum()) for tensor in self.batch_mean_squared.values())


def refuse_projection(output: Any) -> None:  # noqa: ANN401
    """Refuse a fixed random weight for every number of the output as a loss: it says nothing of targets.

    A model that gives a single number has its own loss.

    Raises:
        UsageError: the output is not a single number.
    """
    is_number = output.numel() == 1 if isinstance(output, torch.Tensor) else isinstance(output, int | float)
    if not is_number:
        raise UsageError(
            "a Fisher matrix needs the likelihood of the targets, and --loss projection has none; name one with "
            f"--loss {', '.join(LIKELIHOODS)}, or a loss of your own as file.py:function."
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
) -> Fisher:
    """Average squared per-sample gradients over batches.

    Args:
        model: in evaluation mode; batch normalization by the batch would tie the samples together.
        batches: samples with targets.
        loss_name: a name of `LIKELIHOODS` for the true Fisher matrix, anything else for a loss of the user's.
        loss: called with the output for a batch of one and its target, where the name is no likelihood.
        kind: `empirical`, `sampled`, `exact` or `ggn`.
        n_draws: targets drawn for each sample, for `sampled`.
        seed: of the drawn targets.
        on_progress: told how many samples are done.

    Raises:
        UsageError: the loss has no likelihood, or targets are missing.
    """
    worker = _Worker(model, loss_name, loss, kind, n_draws, torch.Generator().manual_seed(seed), seed)
    n_batches = 0
    for batch in batches:
        worker.add(batch)
        n_batches += 1
        on_progress(worker.result.n_samples)
    if not n_batches:
        raise UsageError("there are no samples to average over.")
    result = worker.result
    for tensors, n in ((result.diagonal, result.n_samples), (result.batch_mean_squared, n_batches)):
        for tensor in tensors.values():
            tensor /= n
    return result


@dataclass(eq=False)
class _Worker:
    model: nn.Module
    loss_name: str
    loss: Loss
    kind: str
    n_draws: int
    generator: torch.Generator
    seed: int
    result: Fisher = field(init=False)
    classes_last: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"the kind of Fisher matrix must be one of {', '.join(KINDS)}, but is '{self.kind}'.")
        self.likelihood = LIKELIHOODS.get(self.loss_name)
        if self.likelihood is None and self.kind in ("sampled", "exact"):
            raise UsageError(
                f"the true Fisher matrix needs a likelihood; --loss must be one of {', '.join(LIKELIHOODS)}, but is "
                f"'{self.loss_name}'. --fisher-kind empirical and ggn take any loss."
            )
        self.parameters = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        zeros = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in self.parameters.items()}
        mistaken = {name: tensor.clone() for name, tensor in zeros.items()}
        told = self.likelihood.name if self.likelihood else "the loss as it is, for each sample by itself"
        self.result = Fisher(self.kind, zeros, mistaken, told)

    def add(self, batch: Batch) -> None:
        """Add the samples of a batch."""
        if batch.target is None and self.kind in ("empirical", "ggn") and self.likelihood is not None:
            raise UsageError(
                "this Fisher matrix needs targets; give them with --data as 'target', or draw from the model."
            )
        output = self._output(batch)
        if self.loss_name == "projection":
            refuse_projection(output)
        if self.loss_name in OF_CLASSES and isinstance(output, torch.Tensor):
            self.classes_last = classes_are_last(output, batch.target)
        if isinstance(output, torch.Tensor) and output.ndim and output.shape[0] == batch.n_samples:
            vectors = self._vectors(output.detach(), batch)
            self._add_squares(batch, vectors, output.shape)
        elif self.kind == "empirical":
            self._loop("the output is not one tensor with a row for each sample", batch, None)
        else:
            raise UsageError("this Fisher matrix needs a model whose output is one tensor with a row for each sample.")
        self._add_mistake(batch)
        self.result.n_samples += batch.n_samples
        self.result.batch_size = max(self.result.batch_size, batch.n_samples)

    def _arranged(self, output: torch.Tensor) -> torch.Tensor:
        """Move the axis of classes to where the likelihoods look for it."""
        return output.movedim(-1, 1) if self.classes_last else output

    def _output(self, batch: Batch) -> Any:  # noqa: ANN401
        seed_everything(self.seed)
        with torch.no_grad():
            return self.model(*batch.arguments, **batch.keywords)

    # ------------------------------------------------------------- vectors in the space of the outputs

    def _vectors(self, output: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Give v_k for every sample: `(N, F, K)`."""
        n = output.shape[0]
        if self.kind == "exact":
            assert self.likelihood is not None
            self._check_width(output[0].numel())
            arranged = self._arranged(output)
            factors = torch.stack([self.likelihood.factors(row) for row in arranged])
            # Back to the order of the model's own output.
            in_order = factors.unflatten(-1, arranged.shape[1:])
            return (in_order.movedim(2, -1) if self.classes_last else in_order).flatten(2)
        if self.kind == "ggn":
            self._check_width(output[0].numel())
            return torch.stack([self._hessian_factors(output[i : i + 1], batch.sample(i)) for i in range(n)])
        if self.kind == "empirical":
            return self._slopes(output, batch).reshape(n, 1, -1)
        assert self.likelihood is not None
        draws = []
        for _ in range(self.n_draws):
            drawn = Batch((), {}, self.likelihood.draw(self._arranged(output), self.generator))
            draws.append(self._slopes(output, drawn).reshape(n, -1) / math.sqrt(self.n_draws))
        return torch.stack(draws, 1)

    def _check_width(self, n_outputs: int) -> None:
        if n_outputs > _MAX_OUTPUTS:
            raise UsageError(
                f"{n_outputs} outputs for each sample are too many for --fisher-kind {self.kind}, at most "
                f"{_MAX_OUTPUTS}; use sampled or empirical."
            )

    def _value(self, output: torch.Tensor, target: torch.Tensor | None) -> torch.Tensor:
        if self.likelihood is not None:
            assert target is not None
            cast = target.to(output.dtype) if target.is_floating_point() else target
            return self.likelihood.negative_log(self._arranged(output), cast)
        return as_scalar(self.loss(output, target))

    def _slopes(self, output: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Differentiate the loss of every sample by its outputs."""
        leaf = output.clone().requires_grad_()
        with torch.enable_grad():
            if self.likelihood is not None:
                total = self._value(leaf, batch.target)
            else:
                rows = [self._value(leaf[i : i + 1], _row(batch.target, i)) for i in range(len(leaf))]
                total = torch.stack(rows).sum()
            (slope,) = torch.autograd.grad(total, leaf)
        return slope

    def _hessian_factors(self, output: torch.Tensor, sample: Batch) -> torch.Tensor:
        """Factor the Hessian of the loss by the outputs; directions of negative curvature are left out."""

        def value(flat: torch.Tensor) -> torch.Tensor:
            return self._value(flat.reshape(output.shape), sample.target)

        with torch.enable_grad():
            hessian = torch.autograd.functional.hessian(value, output.flatten())
        values, vectors = torch.linalg.eigh(hessian)
        return (vectors * values.clamp_min(0).sqrt()).T

    # ------------------------------------------------------------- back to the parameters

    def _add_squares(self, batch: Batch, vectors: torch.Tensor, shape: torch.Size) -> None:
        if self.result.loop_reason is None:
            try:
                squares = self._vectorized(batch, vectors, shape)
            except RuntimeError as error:
                self.result.loop_reason = str(error).partition("\n")[0][:160].rstrip(".")
            else:
                for name, square in squares.items():
                    self.result.diagonal[name] += square
                return
        self._loop(self.result.loop_reason, batch, vectors)

    def _vectorized(self, batch: Batch, vectors: torch.Tensor, shape: torch.Size) -> dict[str, torch.Tensor]:
        names = list(batch.keywords)
        n_bytes = sum(p.numel() * p.element_size() for p in self.parameters.values())
        n_together = max(1, int(_CHUNK_BYTES // max(n_bytes, 1)))
        n_factors = vectors.shape[1]

        def squares(vector: torch.Tensor, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            arguments = tuple(x.unsqueeze(0) for x in inputs[: len(batch.arguments)])
            keywords = {n: x.unsqueeze(0) for n, x in zip(names, inputs[len(batch.arguments) :], strict=True)}

            def outputs(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
                return functional_call(self.model, parameters, arguments, keywords).flatten()

            pull_back = vjp(outputs, self.parameters)[1]
            pulled = vmap(lambda v: pull_back(v)[0], chunk_size=n_together)(vector)
            return {name: gradient.abs().square().sum(0) for name, gradient in pulled.items()}

        inputs = (*batch.arguments, *batch.keywords.values())
        seed_everything(self.seed)
        every = vmap(squares, chunk_size=max(1, n_together // n_factors), randomness="error")(vectors, *inputs)
        return {name: square.double().sum(0) for name, square in every.items()}

    def _loop(self, reason: str, batch: Batch, vectors: torch.Tensor | None) -> None:
        """Take the samples one by one, where vmap cannot go."""
        self.result.loop_reason = reason
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        for i in range(batch.n_samples):
            sample = batch.sample(i)
            seed_everything(self.seed)
            output = self.model(*sample.arguments, **sample.keywords)
            if vectors is None:
                heads = [(as_scalar(self.loss(output, sample.target)), None)]
            else:
                heads = [(output.flatten(), vector) for vector in vectors[i]]
            for head, vector in heads:
                found = torch.autograd.grad(head, trainable, vector, retain_graph=True, allow_unused=True)
                for name, gradient in zip(self.parameters, found, strict=True):
                    if gradient is not None:
                        self.result.diagonal[name] += gradient.abs().double().square()

    def _add_mistake(self, batch: Batch) -> None:
        """Square the gradient of the mean loss of the batch, as is often written."""
        seed_everything(self.seed)
        output = self.model(*batch.arguments, **batch.keywords)
        target = batch.target
        if self.likelihood is not None:
            if target is None or self.kind in ("sampled", "exact"):
                target = self.likelihood.draw(self._arranged(output.detach()), self.generator)
            mean = self._value(output, target) / batch.n_samples
        else:
            mean = as_scalar(self.loss(output, target))
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        if not mean.requires_grad:
            return
        for name, gradient in zip(
            self.parameters, torch.autograd.grad(mean, trainable, allow_unused=True), strict=True
        ):
            if gradient is not None:
                self.result.batch_mean_squared[name] += gradient.abs().double().square()


def _row(target: torch.Tensor | None, index: int) -> torch.Tensor | None:
    return None if target is None else target[index : index + 1]
