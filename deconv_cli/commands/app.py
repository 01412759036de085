"""The `deconv` command: its subcommands, and the one place where errors become sentences and exit codes.

A doubted result exits with 3 in its own command.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar

import typer
from typer.core import TyperGroup

import deconv_cli
from deconv_cli.allocator import import_torch_uncollected, keep_freed_memory
from deconv_cli.commands.console import prepare_streams, print_error
from deconv_cli.commands.exit_codes import ExitCode, exit_code_for
from deconv_cli.errors import DeconvError, as_too_large
from deconv_cli.settings import with_options


class LazyGroup(TyperGroup):
    """A command group that imports the module of a command with its first use, so that each command starts soon."""

    places: ClassVar[dict[str, tuple[str, str, str]]]
    """The module, the function and the name of the example of each command."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401
        super().__init__(**options)
        self.commands: Any = dict.fromkeys(self.places) | dict(self.commands)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401
        """Build a command of this group; `None` if there is no such command."""
        if cmd_name in self.commands and self.commands[cmd_name] is None:
            from deconv_cli.commands.option_groups import with_option_groups

            module_name, function, example = self.places[cmd_name]
            module = importlib.import_module(f"deconv_cli.commands.{module_name}")
            extra = getattr(module, "CONTEXT_SETTINGS", None)
            single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
            register = single.command(cmd_name, epilog=getattr(module, example), context_settings=extra)
            register(with_option_groups(getattr(module, function)))
            self.commands[cmd_name] = typer.main.get_command(single)
        return super().get_command(ctx, cmd_name)


class ErrorBoundary(LazyGroup):
    """The commands at the top, with their errors in one sentence; a bug keeps its traceback."""

    places: ClassVar = {
        "forward": ("forward", "forward", "EXAMPLE"),
        "invert": ("invert", "invert", "EXAMPLE"),
        "factor": ("factor", "factor", "EXAMPLE"),
        "inspect": ("inspect", "inspect", "EXAMPLE"),
        "check-grad": ("check_grad", "check_grad", "EXAMPLE"),
        "fisher": ("fisher", "fisher", "EXAMPLE"),
        "demo": ("demo", "demo", "EXAMPLE"),
    }

    def make_context(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        """Read the command line, and print the help or the version where it asks for them."""
        with _reported():
            return super().make_context(*args, **options)

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override] # noqa: ANN401
        """Run the subcommand."""
        with _reported():
            return super().invoke(ctx)


class KernelGroup(LazyGroup):
    """The commands that make kernels."""

    places: ClassVar = {
        "estimate": ("kernel_commands", "estimate", "ESTIMATE_EXAMPLE"),
        "align": ("kernel_commands", "align", "ALIGN_EXAMPLE"),
        "make": ("kernel_make", "make", "MAKE_EXAMPLE"),
        "extract": ("kernel_make", "extract", "EXTRACT_EXAMPLE"),
        "fit": ("kernel_fit", "fit", "EXAMPLE"),
        "from-beads": ("kernel_make", "from_beads", "BEADS_EXAMPLE"),
        "microscope": ("kernel_make", "microscope", "MICROSCOPE_EXAMPLE"),
    }


@contextmanager
def _reported() -> Iterator[None]:
    """Turn an error into its sentence and its exit code."""
    try:
        yield
    except (DeconvError, MemoryError, RuntimeError) as error:
        found = error if isinstance(error, DeconvError) else as_too_large(error)
        if found is None:
            raise
        print_error(with_options(str(found)))
        raise typer.Exit(exit_code_for(found)) from error
    except KeyboardInterrupt as error:
        print_error("interrupted; files that are not finished were not written.")
        raise typer.Exit(ExitCode.INTERRUPTED) from error


app = typer.Typer(
    name="deconv",
    cls=ErrorBoundary,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Undo a convolution: restore images and feature tensors from the kernel that blurred or mixed them.",
    epilog="Each command explains itself: deconv invert --help",
)
app.add_typer(
    typer.Typer(
        cls=KernelGroup,
        help="Make or measure a kernel, by a formula or from a layer, pictures, beads or optics; or check one.",
        no_args_is_help=True,
        rich_markup_mode="rich",
    ),
    name="kernel",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"deconv {deconv_cli.__version__}")
        raise typer.Exit


@app.callback()
def deconv(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Undo a convolution: restore images and feature tensors from the kernel that blurred or mixed them."""


def main() -> None:
    """Run the command line."""
    # Threads that wait by spinning make a solve many times slower as soon as something else wants the processor.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    import_torch_uncollected()
    prepare_streams()
    app(prog_name="deconv")
