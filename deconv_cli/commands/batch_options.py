"""Options on many files, and what they mean for the jobs of a run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from deconv_cli.commands.manifest import Manifest
from deconv_cli.commands.option_checks import typed_options
from deconv_cli.errors import UsageError

MANY_FILES = "Many files"
_NOT_SETTINGS = {
    *("inputs", "output", "force", "report", "show", "as_json", "quiet", "verbose"),
    *("skip_existing", "manifest", "resume", "jobs", "cluster", "scheduler"),
}
"""Parameters that change nothing in what is computed for a file."""


@dataclass(frozen=True)
class BatchOptions:
    """What to do about files that were done before, and where to take down what was done."""

    skip_existing: Annotated[
        bool,
        typer.Option(
            "--skip-existing",
            help="Leave out inputs whose output exists already, whatever it holds.",
            rich_help_panel=MANY_FILES,
        ),
    ] = False
    manifest: Annotated[
        Path | None,
        typer.Option(
            "--manifest",
            metavar="FILE.jsonl",
            help="Write a line of JSON for each file as soon as it is done: what was done, hashes, time, doubts and "
            "errors.",
            show_default=False,
            rich_help_panel=MANY_FILES,
        ),
    ] = None
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue where the manifest ends: only what failed, is missing or has changed is done again. "
            "Without a manifest: continue a run over blocks that ended early.",
            rich_help_panel=MANY_FILES,
        ),
    ] = False

    def check(self, *, force: bool) -> None:
        """Refuse options that contradict one another.

        Raises:
            UsageError: two of them do.
        """
        if self.resume and self.manifest is None:
            raise UsageError(
                "--resume goes on where a manifest ends, or with one file that is restored in blocks; name the "
                "manifest with --manifest FILE.jsonl, or leave --resume out."
            )
        if self.skip_existing and (force or self.resume):
            other = "--force" if force else "--resume"
            raise UsageError(f"--skip-existing leaves outputs that exist, but {other} replaces them; use one of them.")

    def open_manifest(self, invocation: typer.Context, *, force: bool) -> Manifest | None:
        """Open the manifest of a run, if there is to be one."""
        if self.manifest is None:
            return None
        return Manifest(self.manifest, settings_of(invocation), resume=self.resume, force=force)


def settings_of(invocation: typer.Context) -> dict[str, Any]:
    """Give what was typed that changes results, as JSON, with the SHA-256 of each file that it names."""
    from deconv_cli.io import fingerprint

    typed = {name: invocation.params[name] for name in sorted(typed_options(invocation) - _NOT_SETTINGS)}
    settings = {name: _as_json(value) for name, value in typed.items()}
    return settings | {"files": {str(path): fingerprint(path) for path in files_read(invocation)}}


def files_read(invocation: typer.Context) -> list[Path]:
    """List the files besides the inputs that the options name and that are read."""
    names = sorted(typed_options(invocation) - _NOT_SETTINGS - {"error_map", "trust_mask"})
    return [path for name in names for path in _files_in(_as_json(invocation.params[name]))]


def _as_json(value: object) -> object:
    if isinstance(value, list | tuple):
        return [_as_json(one) for one in value]
    if isinstance(value, Enum):
        return value.value
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _files_in(value: object) -> list[Path]:
    """Find the files that a value names: `kernel.npy`, `model.pt:conv1` and `code.py:Class`."""
    if isinstance(value, list):
        return [path for one in value for path in _files_in(one)]
    if not isinstance(value, str) or not value:
        return []
    candidates = (Path(value), Path(value.rpartition(":")[0]))
    try:
        return [path for path in candidates if path.is_file()][:1]
    except (OSError, ValueError):
        return []
