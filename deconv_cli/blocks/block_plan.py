"""The plan of a run over blocks: all that was decided before it, so that every process decides the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deconv_cli.blocks.fixed_choices import FixedChoices
from deconv_cli.blocks.halo_depth import HaloChoice
from deconv_cli.blocks.sampled_error import ErrorSample
from deconv_cli.vocabulary import Size


@dataclass(frozen=True)
class BlockPlan:
    """What was decided.

    Attributes:
        fingerprint: SHA-256 of the input, the kernel and the settings that it was made for.
        core: samples of a block along each axis of the result.
        halo: what surrounds a block, and what it leaves at the seams.
        choices: what holds for all blocks alike.
        seams: blocks whose seams towards the next ones are measured.
        n_threads: for the arithmetic of one block.
        max_memory: bytes that a block may take.
        block_bytes: those that it takes at most, as estimated.
        seconds_a_sample: that restoring took on the pieces that were looked at.
        doubts: why pieces of the picture are doubted, a sentence each.
        error: what pieces tell of the error; `None` where it is not predicted.
    """

    fingerprint: str
    core: Size
    halo: HaloChoice
    choices: FixedChoices
    seams: tuple[int, ...]
    n_threads: int
    max_memory: int
    block_bytes: int
    seconds_a_sample: float
    doubts: tuple[str, ...] = ()
    error: ErrorSample | None = None

    def as_record(self) -> dict[str, Any]:
        """Give the plan as JSON can hold it."""
        return {
            "fingerprint": self.fingerprint,
            "core": list(self.core),
            "halo": self.halo.as_record(),
            "choices": self.choices.as_record(),
            "seams": list(self.seams),
            "n_threads": self.n_threads,
            "max_memory": self.max_memory,
            "block_bytes": self.block_bytes,
            "seconds_a_sample": self.seconds_a_sample,
            "doubts": list(self.doubts),
            "error": self.error and self.error.as_record(),
        }

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> BlockPlan:
        """Read what `as_record` gave."""
        return cls(
            record["fingerprint"],
            tuple(record["core"]),
            HaloChoice.of_record(record["halo"]),
            FixedChoices.of_record(record["choices"]),
            tuple(record["seams"]),
            record["n_threads"],
            record["max_memory"],
            record["block_bytes"],
            record["seconds_a_sample"],
            tuple(record["doubts"]),
            record["error"] and ErrorSample.of_record(record["error"]),
        )
