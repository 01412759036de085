"""What a run over blocks has done, on disk: a run that is killed resumes from it."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import types
import typing
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from deconv_cli.blocks.block_plan import BlockPlan
from deconv_cli.blocks.block_task import BlockResult
from deconv_cli.errors import FileAccessError
from deconv_cli.io.folders import address_of, remove
from deconv_cli.io.hidden_names import process_name
from deconv_cli.io.records import open_sealed, seal_record
from deconv_cli.io.regions.partial_file import refusing_to_write
from deconv_cli.io.sources import read_lines


@dataclass(frozen=True)
class Checkpoint:
    """A folder beside the result: the plan, and one file of lines for each process that writes blocks.

    A line is added by one call, after the samples of its block are in the file. A process that dies in between leaves a
    block that is done again, and at worst half a line, which is ignored. The plan and each line end with their digests.

    Attributes:
        folder: where it is.
    """

    folder: Path

    @classmethod
    def of(cls, target: Path) -> Checkpoint:
        """Return the checkpoint of a result; at an address lines cannot be added, so it is in the working folder."""
        name = f".{target.name}.blocks"
        return cls(Path(name).absolute() if address_of(target) else target.with_name(name))

    def read_plan(self) -> BlockPlan | None:
        """Read the plan of an earlier run; return `None` if there is none.

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
                f"'{path}', the plan of an earlier run of which {n_done} blocks are done, cannot be read: it is gone, "
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
                os.link(own, self.folder / "plan.json")
            own.unlink()
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
        """Return the blocks that are done by their numbers, without those whose lines are damaged."""
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
        """Let this run finish what another run was killed at."""
        with refusing_to_write(self.folder):
            (self.folder / "finishing").unlink(missing_ok=True)

    def forget(self, fingerprint: str | None) -> None:
        """Remove the folder if its plan has this fingerprint, is damaged or gone: another job may have begun by now."""
        with contextlib.suppress(FileAccessError):
            plan = self.read_plan()
            if plan is None or plan.fingerprint != fingerprint:
                return
        self.remove()

    def remove(self) -> None:
        """Remove the folder, at once for all who look for it."""
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
