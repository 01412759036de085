"""The rules of the gradient checker, in order of precedence.

The first rule that finds something for a parameter decides. A rule is a function that takes the evidence and the name
of a parameter, and returns a finding with its suggestion, or None. Rules that a caller registers are asked first::

    deconv_cli.GRADIENT_RULES.register("too-large", find_too_large)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from deconv_cli.registry import Part, Registry

if TYPE_CHECKING:
    from deconv_cli.gradients.evidence import Evidence
    from deconv_cli.gradients.findings import Finding
    from deconv_cli.gradients.training.optimizer_watch import TrainingEvidence

    ParameterRule = Callable[[Evidence, str], Finding | None]
    ModelRule = Callable[[Evidence], Sequence[Finding]]
    TrainingRule = Callable[[TrainingEvidence], Sequence[Finding]]


class RuleRegistry(Registry[Part]):
    """Rules by name, in order of precedence; those of the caller come before the built-in ones."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all rules, the first to be asked first."""
        added = [name for name in self._parts if name not in self._built_in]
        return (*added, *self._built_in)


_HERE = "deconv_cli.gradients.rules"
GRADIENT_RULES: RuleRegistry[ParameterRule] = RuleRegistry(
    "gradient rule",
    {
        "in-place": f"{_HERE}.misuse:find_in_place",
        "failing-backward": f"{_HERE}.misuse:find_failing_backward",
        "overwritten": f"{_HERE}.misuse:find_overwritten",
        "frozen": f"{_HERE}.unused:find_frozen",
        "empty": f"{_HERE}.unused:find_empty",
        "not-reached": f"{_HERE}.unused:find_not_reached",
        "unused": f"{_HERE}.unused:find_unused",
        "detached": f"{_HERE}.detached:find_detached",
        "non-finite": f"{_HERE}.magnitude:find_non_finite",
        "left-out-of-derivative": f"{_HERE}.magnitude:find_left_out_of_derivative",
        "used-outside-torch": f"{_HERE}.detached:find_used_outside_torch",
        "not-in-loss": f"{_HERE}.unused:find_not_in_loss",
        "zero-by-construction": f"{_HERE}.magnitude:find_zero_by_construction",
        "zero-at-start": f"{_HERE}.magnitude:find_zero_at_start",
        "zero": f"{_HERE}.magnitude:find_zero",
        "noisy": f"{_HERE}.finite_difference_verdict:find_noisy",
        "wrong-function": f"{_HERE}.finite_difference_verdict:find_wrong_function",
        "substituted": f"{_HERE}.finite_difference_verdict:find_substituted",
        "renormed": f"{_HERE}.finite_difference_verdict:find_renormed",
        "gradient-hook": f"{_HERE}.finite_difference_verdict:find_gradient_hook",
        "partly-detached": f"{_HERE}.detached:find_partly_detached",
        "wrong": f"{_HERE}.finite_difference_verdict:find_wrong",
        "wrong-second-derivative": f"{_HERE}.finite_difference_verdict:find_wrong_second_derivative",
        "vanishing-at-start": f"{_HERE}.magnitude:find_vanishing_at_start",
        "vanishing": f"{_HERE}.magnitude:find_vanishing",
        "exploding": f"{_HERE}.magnitude:find_exploding",
        "symmetric": f"{_HERE}.magnitude:find_symmetric",
        "nondifferentiable": f"{_HERE}.finite_difference_verdict:find_nondifferentiable",
        "ok": f"{_HERE}.finite_difference_verdict:find_ok",
        "not-checked": f"{_HERE}.finite_difference_verdict:find_not_checked",
    },
)
"""Rules for each parameter: the first one that finds something decides."""

MODEL_RULES: RuleRegistry[ModelRule] = RuleRegistry(
    "model rule",
    {
        "nothing-trains": f"{_HERE}.unused:find_nothing_trains",
        "unregistered": f"{_HERE}.unused:find_unregistered",
        "loss-input": f"{_HERE}.misuse:find_loss_input",
        "in-place": f"{_HERE}.misuse:find_in_place_in_model",
        "noisy": f"{_HERE}.finite_difference_verdict:find_noisy_model",
        "wrong-function": f"{_HERE}.finite_difference_verdict:find_wrong_function_in_model",
        "detached-on-purpose": f"{_HERE}.detached:find_detached_on_purpose",
        "batch-leak": f"{_HERE}.misuse:find_batch_leak",
    },
)
"""Rules for the model as a whole: the findings of all of them count."""

TRAINING_RULES: RuleRegistry[TrainingRule] = RuleRegistry(
    "training rule",
    {
        "weights-not-held": f"{_HERE}.optimizer_steps:find_weights_not_held",
        "step-without-effect": f"{_HERE}.optimizer_steps:find_step_without_effect",
        "accumulated": f"{_HERE}.optimizer_steps:find_accumulated",
        "gradient-lost": f"{_HERE}.optimizer_steps:find_gradient_lost",
        "idle-clipping": f"{_HERE}.optimizer_steps:find_idle_clipping",
        "failing-script": f"{_HERE}.optimizer_steps:find_failing_script",
    },
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
    raise LookupError(f"no rule finds anything for '{name}'")


def find_in_training(evidence: TrainingEvidence) -> tuple[Finding, ...]:
    """Return the findings of all rules for a training script."""
    return tuple(found for rule in TRAINING_RULES for found in TRAINING_RULES[rule](evidence))


def find_in_model(evidence: Evidence) -> tuple[Finding, ...]:
    """Return the findings of all rules for the model as a whole."""
    return tuple(found for rule in MODEL_RULES for found in MODEL_RULES[rule](evidence))
