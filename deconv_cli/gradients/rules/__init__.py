"""The rules of the gradient checker, in order of precedence.

The first rule that finds something for a parameter decides. A rule is a function that takes the evidence and the name
of a parameter, and returns a finding with its suggestion, or None. Rules that a caller registers are asked first::

    deconv_cli.GRADIENT_RULES.register("too-large", find_too_large)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from deconv_cli.parts import Part, Registry

if TYPE_CHECKING:
    from deconv_cli.gradients.evidence import Evidence
    from deconv_cli.gradients.findings import Finding
    from deconv_cli.gradients.training.optimizer_watch import TrainingEvidence

    ParameterRule = Callable[[Evidence, str], Finding | None]
    ModelRule = Callable[[Evidence], Sequence[Finding]]
    TrainingRule = Callable[[TrainingEvidence], Sequence[Finding]]


T = TypeVar("T")


class RuleRegistry(Registry[Part]):
    """Rules by name, in order of precedence; those of the caller come before the built-in ones."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all rules, the first to be asked first."""
        added = [name for name in self._parts if name not in self._built_in]
        return (*added, *self._built_in)


def _places(*modules: tuple[str, str]) -> dict[str, str]:
    """Give the place of each rule: the function `find_` and its name, in a module of this package."""
    named = [(name, module) for module, names in modules for name in names.split()]
    return {name: f"{__name__}.{module}:find_{name.replace('-', '_')}" for name, module in named}


GRADIENT_RULES: RuleRegistry[ParameterRule] = RuleRegistry(
    "gradient rule",
    _places(
        ("usage", "in-place failing-backward overwritten frozen not-reached unused"),
        ("detached", "detached"),
        ("magnitude", "non-finite left-out-of-derivative"),
        ("detached", "used-outside-torch"),
        ("usage", "not-in-loss"),
        ("magnitude", "zero-by-construction zero"),
        ("finite_difference_verdict", "noisy wrong-function substituted renormed gradient-hook"),
        ("detached", "partly-detached"),
        ("finite_difference_verdict", "wrong"),
        ("magnitude", "vanishing exploding"),
        ("finite_difference_verdict", "compared"),
    ),
)
"""Rules for each parameter: the first one that finds something decides."""

MODEL_RULES: RuleRegistry[ModelRule] = RuleRegistry(
    "model rule",
    _places(
        ("usage", "nothing-trains unregistered loss-input"),
        ("finite_difference_verdict", "noisy-model wrong-function-in-model"),
        ("detached", "detached-on-purpose"),
        ("usage", "batch-leak"),
    ),
)
"""Rules for the model as a whole: the findings of all of them count."""

TRAINING_RULES: RuleRegistry[TrainingRule] = RuleRegistry(
    "training rule",
    _places(
        ("optimizer_steps", "weights-not-held step-without-effect accumulated gradient-lost failing-script"),
    ),
)
"""Rules for a script that trains: the findings of all of them count."""


def find_for_parameter(evidence: Evidence, name: str) -> Finding:
    """Return the finding of the first rule that finds something for a parameter.

    Raises:
        LookupError: no rule finds anything, which the last built-in rule prevents.
    """
    for rule in GRADIENT_RULES:
        found = GRADIENT_RULES[rule](evidence, name)
        # If autograd and finite differences differ, a finding that is no fault must say why.
        if found is not None and (found.is_fault or found.detail or not evidence.differs(name)):
            return found
    raise LookupError(f"no rule applies to '{name}'")


def find_all(rules: RuleRegistry[Callable[[T], Sequence[Finding]]], evidence: T) -> tuple[Finding, ...]:
    """Return the findings of all rules for the model as a whole, or for a training script."""
    return tuple(found for rule in rules for found in rules[rule](evidence))
