"""The options of `deconv invert` beyond a quadratic penalty, as typed and as they would be typed again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deconv_cli.commands import options
from deconv_cli.commands.context import OptionValues
from deconv_cli.errors import UsageError
from deconv_cli.vocabulary import parse_positive

if TYPE_CHECKING:
    from deconv_cli.workflows.estimators import Wishes

NonnegativeOption = Annotated[
    bool, typer.Option("--nonnegative", help="Minimize among images without negative pixels.")
]
PriorOption = Annotated[
    str,
    typer.Option(
        "--prior",
        **options.one_of("prior", ("quadratic", "tv")),
        help="What is likely of an image: a small penalty, or (tv) flat regions with sharp edges.",
    ),
]
WeightOption = Annotated[
    str | None,
    typer.Option(
        "--weight",
        metavar="auto|V",
        help="Weight of the total variation, in the unit of the samples. Default: auto, from the noise.",
        show_default=False,
    ),
]
GainOption = Annotated[
    str | None,
    typer.Option(
        "--gain",
        metavar="auto|V",
        help="For method richardson-lucy: units of the samples a count, to stop by the noise of counts; auto reads it "
        "off the data. Default: stop by samples that are held out.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class BeyondOptions:
    """What was asked for beyond a quadratic penalty; `None` where nothing was typed."""

    nonnegative: bool = False
    prior: str = "quadratic"
    weight: float | Literal["auto"] | None = None
    gain: float | Literal["auto"] | None = None
    noise_sigma: float | None = None

    @classmethod
    def parse(
        cls, nonnegative: bool, prior: str, weight: str | None, gain: str | None, noise_sigma: float | None
    ) -> BeyondOptions:
        """Read what was typed.

        Raises:
            UsageError: a weight or a gain is neither auto nor a positive number.
        """
        return cls(nonnegative, prior, parse_positive(weight, "weight"), parse_positive(gain, "gain"), noise_sigma)

    def refuse_with_factor(self) -> None:
        """Refuse to go with a factor.

        Raises:
            UsageError: anything was asked for.
        """
        if replace(self, noise_sigma=None) != BeyondOptions():
            raise UsageError(
                "a factor is a linear inverse, so that --factor does not go with --nonnegative, --prior, --weight or "
                "--gain; give its kernel with --kernel instead."
            )

    @property
    def wishes(self) -> Wishes:
        """The same for the workflow."""
        from deconv_cli.workflows.estimators import Wishes

        return Wishes(self.nonnegative, self.prior, self.weight, self.gain, self.noise_sigma)

    def retyped(self, method: str) -> OptionValues:
        """Give the options that make the same estimate again, in place of those of a quadratic penalty alone."""
        if method == "richardson-lucy":
            return {"--lambda": None, "--penalty": None, "--method": method, "--gain": _typed(self.gain)}
        if self.prior == "tv":
            # Not the weight that was found: another way to it would end at other last digits.
            weight = "auto" if self.weight is None else _typed(self.weight)
            return {
                "--lambda": None,
                "--penalty": None,
                "--method": "auto",
                "--prior": self.prior,
                "--weight": weight,
            }
        return {"--nonnegative": True} if self.nonnegative else {}


def _typed(value: float | str | None) -> str | None:
    return repr(value) if isinstance(value, float) else value
