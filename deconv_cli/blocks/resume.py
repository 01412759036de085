"""What earlier runs for the same result left: all of it, a part of it, or the work of other settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deconv_cli.blocks.block_plan import BlockPlan
from deconv_cli.blocks.checkpoint import Checkpoint
from deconv_cli.errors import DeconvError, FileAccessError, UsageError
from deconv_cli.io.hidden_names import partial_path
from deconv_cli.io.output_path import check_output_path
from deconv_cli.io.regions.opening import open_regions
from deconv_cli.io.regions.region_target import RegionTarget


class BlocksCompleteError(UsageError):
    """There is nothing to resume: an earlier run of the same input, kernel and settings is complete.

    Attributes:
        record: of that run, as the result holds it; it names the result as this run does.
    """

    def __init__(self, target: RegionTarget, record: dict[str, Any]) -> None:
        self.record = record | {"output": record["output"] | {"path": target.spelled_path}}
        super().__init__(
            f"'{target.spelled_path}' is complete already: an earlier run made it of this input, with this kernel and "
            "these settings; give force=True in place of resume=True to have it made again."
        )


def find_earlier(
    targets: Sequence[RegionTarget],
    source: Path,
    checkpoint: Checkpoint,
    fingerprint: str,
    *,
    resume: bool,
    force: bool,
) -> BlockPlan | None:
    """Return the plan of the run to resume, or of another run that `force` replaces; `None` if there is neither.

    Args:
        targets: all files that are written, the result last.
        source: the input.
        checkpoint: of the result.
        fingerprint: of all that decides what is written.
        resume: whether an earlier run is resumed.
        force: whether unfinished files of other runs, and other files, may be replaced.

    Raises:
        BlocksCompleteError: all files are complete.
        UsageError: there is something that only `force` may remove.
        FileAccessError: the plan of the earlier run cannot be read, and `force` is not given.
    """
    paths = [target.path for target in targets]
    if not resume:
        if not force:
            refuse_to_forget(paths, checkpoint)
        return None
    try:
        known = checkpoint.read_plan()
    except FileAccessError:
        if not force:
            raise
        known = None
    if known is not None and known.fingerprint != fingerprint and not force:
        raise UsageError(
            f"'{targets[-1].path}' was begun with another input, kernel or settings, so it cannot be resumed; repeat "
            "the options of that run, or give force=True to forget what it did and start over."
        )
    records = [record_of(path, fingerprint) for path in paths]
    if known is None and records[-1] is not None and None not in records:
        checkpoint.remove()  # a run that was killed as it removed it may have left a part
        raise BlocksCompleteError(targets[-1], records[-1])
    for target, record in zip(targets, records, strict=True):
        if record is None:
            check_output_path(target.path, source, force=force, is_folder=True)
    return known


def has_earlier(target: Path) -> bool:
    """Return whether a run over blocks made a result, or left a part of it."""
    return bool(_left_of([target], Checkpoint.of(target))) or record_of(target) is not None


def record_of(path: Path, fingerprint: str | None = None) -> dict[str, Any] | None:
    """Return the record of a finished file if a run over blocks made it, with this fingerprint if one is given."""
    try:
        record = open_regions(path).record or {}
    except DeconvError:
        return None
    plan = record.get("plan")
    is_meant = isinstance(plan, dict) and fingerprint in (None, plan.get("fingerprint"))
    return record if is_meant else None


def _left_of(targets: Sequence[Path], checkpoint: Checkpoint) -> list[str]:
    """Name the unfinished files of an earlier run, in quotes."""
    places = [checkpoint.folder, *map(partial_path, targets)]
    return [f"'{path}'" for path in places if path.exists()]


def refuse_to_forget(targets: Sequence[Path], checkpoint: Checkpoint) -> None:
    """Refuse by `UsageError` to remove unasked what an earlier run left, which may have taken long."""
    if left := _left_of(targets, checkpoint):
        raise UsageError(
            f"an earlier run for '{targets[-1]}' ended early or is still running: it left {' and '.join(left)}; "
            "resume=True resumes it, force=True starts over."
        )
