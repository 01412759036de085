"""Restoring by a factor: an inverse that `deconv factor` has built, with all that was settled then."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from deconv_cli.commands.context import Context, FactorFile, Input, OptionValues
from deconv_cli.commands.prediction import PredictionOptions
from deconv_cli.commands.restorer import Border, Posed, Restorer, recorded_border
from deconv_cli.commands.typed_options import was_typed
from deconv_cli.errors import ShapeError, UsageError
from deconv_cli.vocabulary import format_padding

if TYPE_CHECKING:
    from torch import Tensor

    from deconv_cli.io import ImageFile
    from deconv_cli.solvers.pseudo_inverse import PseudoInverse
    from deconv_cli.workflows.invert import Reconstruction

REASON = "fixed in the factor"
FIXED = (
    *("kernel", "layer", "convention", "normalize", "padding", "boundary", "lam", "lambda_rule", "penalty", "rcond"),
    *("method", "tolerance", "max_iterations", "dtype"),
)
"""What was settled when the factor was made, by the names of the parameters of `deconv invert`."""


def refuse_fixed(invocation: typer.Context) -> None:
    """Refuse options that contradict a factor, or repeat what it says.

    Raises:
        UsageError: some were typed; names them.
    """
    given = [
        "/".join([*option.opts[:1], *option.secondary_opts[:1]])
        for option in invocation.command.params
        if option.name in FIXED and was_typed(invocation, option.name)
    ]
    if given:
        raise UsageError(
            f"--factor fixes what {', '.join(given)} would say; leave that out, or make another factor with it."
        )


class FactorRestorer(Restorer):
    """Applies the same inverse to every input.

    Args:
        context: with a factor.
        factor: that factor.
        prediction: whether and how to predict the error.
        max_memory: bytes that the inverse may take.
        verbose: tell of every step and iteration.
        quiet: tell of none.
    """

    def __init__(
        self,
        context: Context,
        factor: FactorFile,
        prediction: PredictionOptions,
        max_memory: int | None,
        *,
        verbose: bool,
        quiet: bool,
    ) -> None:
        super().__init__(context, prediction, verbose=verbose, quiet=quiet)
        self._factor = factor
        self._max_memory = max_memory

    def pose(self, loaded: Input) -> Posed:
        """Give what the factor was made for."""
        inverse = self._factor.inverse
        expected, found = inverse.geometry.output_size, (loaded.values.shape[-2], loaded.values.shape[-1])
        if found != expected:
            height, width = inverse.geometry.image_size
            raise ShapeError(
                f"the factor '{self._factor.path}' takes outputs of {expected[0]}×{expected[1]}, but "
                f"'{loaded.source.path}' is {found[0]}×{found[1]}; use one that was made for it: this one "
                f"was made with --size {height},{width}."
            )
        settings, problem = inverse.settings, inverse.problem
        notes = self._contradictions(loaded.source)
        border = Border(problem.operator.boundary.name, settings.padding, REASON, notes)
        return Posed(border, problem.penalty, problem.lam, REASON)

    def inverse_for(self, values: Tensor, posed: Posed) -> PseudoInverse:
        """Give the factor's inverse."""
        del values, posed
        return self._factor.inverse

    def retyped(self, posed: Posed, result: Reconstruction) -> OptionValues:
        """Give nothing but what the factor leaves open."""
        del posed, result
        return {"--max-memory": self._max_memory, **self._prediction.retyped()}

    def _contradictions(self, source: ImageFile) -> list[str]:
        """Say where `deconv forward` recorded another convolution than the factor undoes."""
        recorded = recorded_border(source)
        if recorded is None:
            return []
        settings = self._factor.inverse.settings
        pairs = [
            ("boundary", recorded.boundary, settings.boundary),
            ("padding", format_padding(recorded.padding), format_padding(settings.padding)),
        ]
        notes = [
            f"deconv forward made this file with {name} {theirs}, but the factor was made for {name} {ours}; "
            "make sure that this is meant"
            for name, theirs, ours in pairs
            if theirs != ours
        ]
        kernel_sha256 = self._context.kernel_file.sha256
        if kernel_sha256 and recorded.kernel_sha256 != kernel_sha256:
            notes.append(
                f"deconv forward made this file with another kernel file, '{recorded.kernel_path}'; "
                "make sure that the factor was made from the same taps"
            )
        return notes
