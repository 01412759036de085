"""The record on disk of the blocks that are done.

A run that was killed resumes from it, and a new run finds what earlier runs left.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import types
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from deconv_cli.blocks.block_plan import BlockPlan
from deconv_cli.blocks.block_task import BlockResult
from deconv_cli.errors import DeconvError, FileAccessError, UsageError
from deconv_cli.io.atomic import check_output_path, name_new, partial_path, process_name
from deconv_cli.io.files import read_lines, remove
from deconv_cli.io.records import open_sealed, seal_record
from deconv_cli.io.region_arrays import RegionTarget, refusing_to_write
from deconv_cli.io.regions import open_regions


@dataclass(frozen=True)
class Checkpoint:
    """A folder beside the result: the plan, and one file of lines for each process that writes blocks.

    One call adds a line, after the samples of its block are in the file. If a process dies in between, the block is
    restored again; half a line is ignored. The plan and each line end with their digests.
    """

    folder: Path

    @classmethod
    def of(cls, target: Path) -> Checkpoint:
        """Return the checkpoint of a result."""
        return cls(target.with_name(f".{target.name}.blocks"))

    def read_plan(self) -> BlockPlan | None:
        """Read the plan of an earlier run, if any.

        Raises:
            FileAccessError: it cannot be read, or is gone although blocks are done.
        """
        path, n_done = self.folder / "plan.json", len(self.results())  # before the plan, which other jobs write first
        try:
            if self.folder.is_symlink():
                raise OSError(errno.ELOOP, "it is a link")
            plan: BlockPlan = _read_as(BlockPlan, open_sealed(read_lines(path)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, FileNotFoundError) and not n_done:
                return None
            raise FileAccessError(
                f"the plan '{path}' of an earlier run with {n_done} finished blocks cannot be read: it is gone, "
                "damaged, of another version, or not permitted; force=True starts over."
            ) from error
        return plan

    def write_plan(self, plan: BlockPlan) -> BlockPlan:
        """Write a plan; if another process was first, return its plan.

        Raises:
            FileAccessError: the folder cannot be written.
        """
        content = seal_record(asdict(plan))
        with refusing_to_write(self.folder):
            self.folder.mkdir(exist_ok=True)
            own = self.folder / f"plan-{process_name()}.json"
            own.write_text(content, encoding="ascii")
            with contextlib.suppress(FileExistsError):
                name_new(own, self.folder / "plan.json")
            own.unlink(missing_ok=True)
        return self.read_plan() or plan

    def add(self, result: BlockResult) -> None:
        """Note that a block is written.

        Raises:
            FileAccessError: the folder cannot be written.
        """
        line = seal_record(asdict(result)) + "\n"
        with refusing_to_write(self.folder):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            descriptor = os.open(self.folder / f"done-{process_name()}.jsonl", flags, 0o666)
            try:
                os.write(descriptor, line.encode("ascii"))
            finally:
                os.close(descriptor)

    def results(self) -> dict[int, BlockResult]:
        """Return the results of the finished blocks by block number, without damaged lines."""
        found = {}
        for path in sorted(self.folder.glob("done-*.jsonl")):
            with contextlib.suppress(OSError):
                for line in read_lines(path).splitlines():
                    with contextlib.suppress(ValueError, TypeError, KeyError):
                        result: BlockResult = _read_as(BlockResult, open_sealed(line))
                        found[result.number] = result
        return found

    def is_first_to_finish(self) -> bool:
        """Return whether no other process has begun to put the result in its place.

        Raises:
            FileAccessError: the folder cannot be written.
        """
        with refusing_to_write(self.folder):
            try:
                os.close(os.open(self.folder / "finishing", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except (FileExistsError, FileNotFoundError):  # it is being finished, or is finished
                return False
            return True

    def forget_finishing(self) -> None:
        """Let this run complete the result that a killed run began to put in its place."""
        with refusing_to_write(self.folder):
            (self.folder / "finishing").unlink(missing_ok=True)

    def forget(self, fingerprint: str | None) -> None:
        """Remove the folder if its plan has this fingerprint, is damaged or gone; another plan belongs to a new run."""
        with contextlib.suppress(FileAccessError):
            plan = self.read_plan()
            if plan is None or plan.fingerprint != fingerprint:
                return
        self.remove()

    def remove(self) -> None:
        """Remove the folder in one step, so that no other process sees a part of it."""
        aside = self.folder.with_name(f"{self.folder.name}-{secrets.token_hex(4)}")
        with contextlib.suppress(FileNotFoundError):
            self.folder.rename(aside)
        for removed in self.folder.parent.glob(f"{glob.escape(self.folder.name)}-*"):  # those of killed runs too
            with contextlib.suppress(OSError):
                remove(removed)


def _read_as(kind: Any, value: Any) -> Any:  # noqa: ANN401  whatever the annotation says
    """Read a value of JSON as an annotation says: a dataclass, a tuple of one type, or one type or `None`."""
    arguments = typing.get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        return kind(**{name: _read_as(hints[name], value[name]) for name in value.keys() | hints.keys()})
    if typing.get_origin(kind) is tuple:
        return tuple(_read_as(arguments[0], each) for each in value)
    if isinstance(kind, types.UnionType):
        return None if value is None else _read_as(arguments[0], value)
    return value


class BlocksCompleteError(UsageError):
    """There is nothing to resume: an earlier run of the same input, kernel and settings is complete.

    Attributes:
        record: of that run, as the result holds it; it names the result as this run does.
    """

    def __init__(self, target: RegionTarget, record: dict[str, Any]) -> None:
        self.record = record | {"output": record["output"] | {"path": str(target.path)}}
        super().__init__(
            f"'{target.path}' is complete already: an earlier run made it from this input, with this kernel "
            "and these settings; give force=True instead of resume=True to make it again."
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

    The targets are all output files, the result last. The fingerprint covers everything that decides their content.
    `force` allows replacing unfinished files of other runs, and other files.

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
            "the options of that run, or give force=True to start over."
        )
    records = [record_of(path, fingerprint) for path in paths]
    if known is None and records[-1] is not None and None not in records:
        checkpoint.remove()  # a run that was killed during the removal may have left a part
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
    """Refuse by `UsageError` to remove the files of an earlier run, which may have taken long."""
    if left := _left_of(targets, checkpoint):
        raise UsageError(
            f"an earlier run for '{targets[-1]}' ended early or is still running: it left {' and '.join(left)}; "
            "resume=True resumes it, force=True starts over."
        )
