"""The `deconv` command: its subcommands, and the one place where errors become sentences and exit codes.

A doubted result exits with 3 in its own command.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import deconv_cli
from deconv_cli.allocator import keep_freed_memory
from deconv_cli.commands import (
    check_grad,
    demo,
    factor,
    fisher,
    forward,
    inspect,
    invert,
    kernel_commands,
    kernel_fit,
    kernel_make,
)
from deconv_cli.commands.console import prepare_streams, print_error
from deconv_cli.commands.exit_codes import ExitCode, exit_code_for
from deconv_cli.commands.option_groups import with_option_groups
from deconv_cli.errors import DeconvError, as_too_large
from deconv_cli.settings import with_options


class ErrorBoundary(TyperGroup):
    """A command group that reports its own errors in one sentence, and lets a bug keep its traceback."""

    def make_context(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        """Read the command line, and print the help or the version where it asks for them."""
        with _reported():
            return super().make_context(*args, **options)

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override] # noqa: ANN401
        """Run the subcommand."""
        with _reported():
            return super().invoke(ctx)


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
app.command("forward", epilog=forward.EXAMPLE)(with_option_groups(forward.forward))
app.command("invert", epilog=invert.EXAMPLE)(with_option_groups(invert.invert))
app.command("factor", epilog=factor.EXAMPLE)(with_option_groups(factor.factor))
app.command("inspect", epilog=inspect.EXAMPLE)(with_option_groups(inspect.inspect))
app.command("check-grad", epilog=check_grad.EXAMPLE, context_settings={"allow_extra_args": True})(
    with_option_groups(check_grad.check_grad)
)
app.command("fisher", epilog=fisher.EXAMPLE)(with_option_groups(fisher.fisher))
app.command("demo", epilog=demo.EXAMPLE)(with_option_groups(demo.demo))

kernels = typer.Typer(help=kernel_commands.HELP, no_args_is_help=True, rich_markup_mode="rich")
for name, command, example in (
    ("estimate", kernel_commands.estimate, kernel_commands.ESTIMATE_EXAMPLE),
    ("align", kernel_commands.align, kernel_commands.ALIGN_EXAMPLE),
    ("make", kernel_make.make, kernel_make.MAKE_EXAMPLE),
    ("extract", kernel_make.extract, kernel_make.EXTRACT_EXAMPLE),
    ("fit", kernel_fit.fit, kernel_fit.EXAMPLE),
    ("from-beads", kernel_make.from_beads, kernel_make.BEADS_EXAMPLE),
    ("microscope", kernel_make.microscope, kernel_make.MICROSCOPE_EXAMPLE),
):
    kernels.command(name, epilog=example)(with_option_groups(command))
app.add_typer(kernels, name="kernel")


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
    prepare_streams()
    app(prog_name="deconv")
