"""How a kernel is learned: every choice, once."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from deconv_cli.errors import UsageError
from deconv_cli.kernels.learning.learned_kernel import Constraint
from deconv_cli.kernels.learning.loss_functions import Loss
from deconv_cli.workflows.image_pairs import check_constraints


@dataclass(frozen=True)
class LearningSettings:
    """How a kernel is learned.

    Attributes:
        loss: a name of `LOSSES`, with its number behind a colon (`huber:2.5`), or a function of a prediction and the
            data, two tensors of one shape, that gives a loss of that shape, or the mean of it.
        channels: learn one kernel for all channels, one for each, or a layer that mixes them.
        boundary: what lies outside the first images; `unknown` uses the outputs that do not depend on it.
        penalty: what is kept small of the taps.
        lam: its weight, in units of the largest eigenvalue of XᵀX beside LᵀL, for a loss that bends like half the
            square; `None` takes the likeliest under Gaussian noise.
        nonnegative: no tap is below zero.
        unit_sum: the taps add up to one; for kernels that do not mix channels.
        max_epochs: passes over the data, at most.
        patience: passes that bring nothing where outputs are held out, after which the descent ends.
        seed: of the order of the data.

    Raises:
        UsageError: values that cannot be.
    """

    loss: str | Loss = "squared"
    channels: Literal["shared", "each", "mix"] = "shared"
    boundary: str = "unknown"
    penalty: str = "gradient"
    lam: float | None = None
    nonnegative: bool = False
    unit_sum: bool = False
    max_epochs: int = 100
    patience: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        check_constraints(self.channels, self.lam, unit_sum=self.unit_sum)
        for name in ("max_epochs", "patience"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"{name} must be a positive whole number, but is {value!r}.")

    @classmethod
    def of(cls, settings: LearningSettings | None = None, **choices: Any) -> LearningSettings:  # noqa: ANN401
        """Make settings of fields by name, or give those back that are made.

        Raises:
            UsageError: there is no such field, or both were given.
        """
        if settings is not None and choices:
            raise UsageError(f"settings were given as a record and as {next(iter(choices))} too; use one or the other.")
        known = [field.name for field in fields(cls)]
        for name in choices:
            if name not in known:
                raise UsageError(f"learning has no setting '{name}'; there are {', '.join(known)}.")
        return settings or cls(**choices)

    @property
    def constraint(self) -> Constraint:
        """What holds of the taps."""
        return Constraint(self.nonnegative, 1.0 if self.unit_sum else None)

    @property
    def loss_name(self) -> str:
        """The loss in words."""
        return self.loss if isinstance(self.loss, str) else getattr(self.loss, "__name__", type(self.loss).__name__)

    def describe(self) -> dict[str, Any]:
        """Give all choices as JSON holds them."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"loss": self.loss_name}
