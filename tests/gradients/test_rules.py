"""The rules: their order is their precedence, each has a file of its own name, and a caller adds his own."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from gradient_cases import checked, load_fixture, verdicts
from torch import nn

from deconv_cli.gradients.checker import collect_evidence
from deconv_cli.gradients.findings import Cause, Finding, Verdict
from deconv_cli.gradients.losses import projection
from deconv_cli.gradients.rules import GRADIENT_RULES, find_for_parameter
from deconv_cli.gradients.subject import Subject

detached, dying = load_fixture("detached"), load_fixture("dying")


def evidence_of(model, *shape, loss=projection):
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    subject = Subject(model, (inputs,), {}, None, loss)
    return collect_evidence(subject, ExitStack(), 60.0, lambda _: None)


@pytest.fixture
def add_rule():
    added = []

    def register(name, rule):
        added.append(name)
        return GRADIENT_RULES.register(name, rule)

    yield register
    for name in added:
        GRADIENT_RULES.unregister(name)


def find_large(evidence, name):
    norm = evidence.gradient_norm(name)
    if norm is None or norm < 1:
        return None
    why = f"the gradient of {name} has norm {norm:.3g}."
    return Finding("TOO-LARGE", (Cause("a large gradient", evidence.module_of(name), why, "scale the loss down"),))


class TestOwnRules:
    def test_a_finding_of_the_callers_own(self, add_rule):
        """A word of its own is a fault, counts as one, and comes with its suggestion."""
        add_rule("large", find_large)
        model = nn.Linear(4, 2)
        found = checked(model, 5, 4, loss=lambda output: 1e3 * output.square().sum())
        assert verdicts(found) == {"weight": "TOO-LARGE", "bias": "TOO-LARGE"}
        assert all(finding.is_fault for finding in found.parameters)
        assert found.parameters[0].causes[0].suggestion == "scale the loss down"
        assert {fault.verdict for fault in found.faults()} == {"TOO-LARGE"}
        small = checked(model, 5, 4, loss=lambda output: 1e-3 * output.square().mean())
        assert set(verdicts(small).values()) == {"OK"}

    def test_it_is_asked_before_the_built_in_ones(self, add_rule):
        add_rule("nothing", lambda evidence, name: Finding(Verdict.OK) if name == "spare.weight" else None)
        found = verdicts(checked(detached.Unused(), 5, 4))
        assert (found["spare.weight"], found["spare.bias"]) == ("OK", "UNUSED")
        assert GRADIENT_RULES.names[0] == "nothing"

    def test_what_is_no_fault_says_why_where_numbers_differ(self, add_rule):
        add_rule("excused", lambda evidence, name: Finding(Verdict.OK))
        found = verdicts(checked(detached.PartDetach(), 5, 4))
        assert (found["body.weight"], found["head.weight"]) == ("DETACHED", "OK")


class TestPrecedence:
    def test_the_last_rule_finds_anything(self):
        assert GRADIENT_RULES.names[-1] == "compared"

    def test_a_loss_of_nan_is_no_zero_gradient(self):
        """Both rules find something; the one that is named first decides."""
        evidence = evidence_of(nn.Linear(4, 2), 5, 4, loss=lambda output, _: (output - 1e6).log().clamp(0, 1).mean())
        zero, non_finite = (GRADIENT_RULES[name](evidence, "weight") for name in ("zero", "non-finite"))
        assert (zero.verdict, non_finite.verdict) == ("ZERO", "NON-FINITE")
        assert find_for_parameter(evidence, "weight") == non_finite
