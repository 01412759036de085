"""What is done of a run over blocks, on disk: a run that is killed goes on where it was."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from deconv_cli.blocks.block_plan import BlockPlan
from deconv_cli.blocks.block_task import BlockResult
from deconv_cli.errors import FileAccessError
from deconv_cli.io.atomic import process_name
from deconv_cli.io.files import address_of, read_lines, remove
from deconv_cli.io.partial_file import refusing_to_write
from deconv_cli.io.records import open_sealed, seal_record


@dataclass(frozen=True)
class BlockLedger:
    """A folder beside the result: the plan, and one file of lines for each process that writes blocks.

    A line is added after the samples of its block are in the file, by one call, so that a process that ends in between
    leaves a block that is done again, and at worst half a line, which is none. The plan and each line end with their
    digests.

    Attributes:
        folder: where it is.
    """

    folder: Path

    @classmethod
    def of(cls, target: Path) -> BlockLedger:
        """Give the ledger of a result; of one at an address, where lines cannot be added, in the working folder."""
        name = f".{target.name}.blocks"
        return cls(Path(name).absolute() if address_of(target) else target.with_name(name))

    def read_plan(self) -> BlockPlan | None:
        """Read the plan that an earlier run made; `None` where none was begun.

        Raises:
            FileAccessError: it cannot be read, or is gone, without which blocks that are done are of no use.
        """
        path, n_done = self.folder / "plan.json", len(self.results())  # before the plan, which other jobs write first
        try:
            if self.folder.is_symlink():
                raise OSError(errno.ELOOP, "it is a link")
            return BlockPlan.of_record(open_sealed(read_lines(path)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, FileNotFoundError) and not n_done:
                return None
            raise FileAccessError(
                f"'{path}', the plan of an earlier run of which {n_done} blocks are done, cannot be read: it is gone, "
                "damaged, of another version, or not permitted; force=True starts over."
            ) from error

    def write_plan(self, plan: BlockPlan) -> BlockPlan:
        """Begin a ledger with a plan; where another process was first, its plan is given.

        Raises:
            FileAccessError: the folder cannot be written.
        """
        content = seal_record(plan.as_record())
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
        line = seal_record(result.as_record()) + "\n"
        with refusing_to_write(self.folder):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            descriptor = os.open(self.folder / f"done-{process_name()}.jsonl", flags, 0o666)
            try:
                os.write(descriptor, line.encode("ascii"))
            finally:
                os.close(descriptor)

    def results(self) -> dict[int, BlockResult]:
        """List the blocks that are done, by their numbers; those whose lines are damaged are not."""
        found = {}
        for path in sorted(self.folder.glob("done-*.jsonl")):
            with contextlib.suppress(OSError):
                for line in read_lines(path).splitlines():
                    with contextlib.suppress(ValueError, TypeError, KeyError):
                        result = BlockResult.of_record(open_sealed(line))
                        found[result.number] = result
        return found

    def is_first_to_finish(self) -> bool:
        """Tell whether no other process that runs has begun to put the result in its place.

        Raises:
            FileAccessError: the folder cannot be written.
        """
        with refusing_to_write(self.folder):
            try:
                os.close(os.open(self.folder / "finishing", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except (FileExistsError, FileNotFoundError):  # it is being finished, or was
                return False
            return True

    def forget_finishing(self) -> None:
        """Let a run finish that was ended while it did."""
        with refusing_to_write(self.folder):
            (self.folder / "finishing").unlink(missing_ok=True)

    def forget(self, fingerprint: str | None) -> None:
        """Remove the folder if its plan has this fingerprint, is damaged or gone: another job may have begun anew."""
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
