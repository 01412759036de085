"""The findings that the user expects (`--expect`), and the verdict on all other findings of a report."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.errors import UsageError
from deconv_cli.vocabulary import counted

if TYPE_CHECKING:
    from deconv_cli.gradients.findings import Finding, GradientReport


@dataclass(frozen=True)
class Expectation:
    """A verdict on a parameter (`*` is a wildcard), on the `model` as a whole, or on a line, `train.py:26`."""

    verdict: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Expectation:
        """Read `UNUSED:head.weight`; another form or no such verdict is a `UsageError`."""
        from deconv_cli.gradients.findings import Verdict

        word, colon, name = text.partition(":")
        known = {verdict.replace(" ", "-"): verdict.value for verdict in Verdict}
        verdict = known.get(word.upper().replace(" ", "-"))
        if not colon or not name or verdict is None:
            raise UsageError(f"--expect must be VERDICT:NAME with one of {', '.join(sorted(known))}, but is '{text}'.")
        return cls(verdict, name)

    def meets(self, finding: Finding, name: str) -> bool:
        """Return whether a finding for a parameter, or for the model as a whole, is the expected one."""
        lines = [Path(str(cause.location)).resolve() for cause in finding.causes if cause.location.file]
        wanted = Path(self.name)
        is_there = any(line == wanted.resolve() or line.match(str(wanted)) for line in lines)
        return finding.verdict == self.verdict and (is_there or fnmatch.fnmatchcase(name, self.name))

    def __str__(self) -> str:
        """Write it as it is typed."""
        return f"{self.verdict}:{self.name}"


@dataclass(frozen=True)
class Outcome:
    """The result of a report.

    Attributes:
        expected: expected names of parameters, and expected verdicts on the model as a whole.
        unmet: expectations without a matching finding.
        exit_code: for the shell.
        conclusion: in one line.
    """

    expected: frozenset[str]
    unmet: list[Expectation]
    exit_code: ExitCode
    conclusion: str

    @classmethod
    def of(cls, report: GradientReport, expectations: list[Expectation]) -> Outcome:
        """Leave out the expected findings, and count the rest; frozen parameters are counted separately."""
        from deconv_cli.gradients.findings import Verdict

        found: list[tuple[Finding, str, str]] = [(finding, finding.name, finding.name) for finding in report.parameters]
        found += [(finding, "model", str(finding.verdict)) for finding in report.general]
        met = {e for e in expectations for finding, name, _ in found if e.meets(finding, name)}
        expected = frozenset(key for finding, name, key in found if any(e.meets(finding, name) for e in expectations))
        rest = [finding for finding in report.parameters if finding.name not in expected]
        n_faults = sum(finding.is_fault for finding in rest)
        n_undecided = sum(finding.is_undecided for finding in rest)
        n_general = sum(finding.is_fault and finding.verdict not in expected for finding in report.general)
        n_frozen = sum(finding.verdict == Verdict.FROZEN for finding in report.parameters)
        n_all = len(report.parameters) - n_frozen
        if n_faults or n_general:
            also = f" and {n_general} of the model as a whole" if n_general else ""
            code, conclusion = ExitCode.FAULT_FOUND, f"faults: {n_faults} of {counted(n_all, 'parameter')}{also}"
        elif n_undecided:
            code = ExitCode.UNTRUSTWORTHY
            conclusion = f"no verdict on {n_undecided} of {counted(n_all, 'parameter')}, and no fault in the others"
        else:
            code, conclusion = ExitCode.SUCCESS, f"healthy: {counted(n_all, 'parameter')}"
        conclusion += f" ({len(expected)} expected)" if expected else ""
        conclusion += f", {n_frozen} more are frozen" if n_frozen else ""
        return cls(expected, [e for e in expectations if e not in met], code, conclusion)
