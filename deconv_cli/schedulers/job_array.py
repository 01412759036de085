"""The share of one job among several that know nothing of each other, as those of a job array."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from deconv_cli.errors import UsageError
from deconv_cli.vocabulary import shortened


@dataclass(frozen=True)
class JobShare:
    """One of N jobs that each do their share of the same pieces of work.

    Attributes:
        job: which one, from 1 to `n_jobs`.
        n_jobs: how many there are.
    """

    job: int
    n_jobs: int

    @classmethod
    def parse(cls, text: str) -> JobShare:
        """Read `i/N`.

        Raises:
            UsageError: it is something else, or i is not from 1 to N.
        """
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip(), re.ASCII)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise UsageError(
                f"block_range must be i/N, the job i of N jobs with i from 1 to N, but is '{shortened(text)}'; number "
                "the jobs of an array from 1."
            )
        return cls(int(found[1]), int(found[2]))

    def of(self, numbers: Sequence[int]) -> Sequence[int]:
        """Give the numbers of this job: neighbors, which read the same parts of a file, as many as every other job."""
        first, end = ((job * len(numbers)) // self.n_jobs for job in (self.job - 1, self.job))
        return numbers[first:end]

    def __str__(self) -> str:
        return f"{self.job}/{self.n_jobs}"
