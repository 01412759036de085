"""The `deconv` command: its subcommands, and the one place where errors become sentences and exit codes.

A doubted result exits with 3 in its own command.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

import deconv_cli
from deconv_cli.allocator import keep_freed_memory
from deconv_cli.commands.console import prepare_streams, print_error
from deconv_cli.commands.exit_codes import ExitCode, exit_code_for
from deconv_cli.errors import DeconvError, UsageError, as_too_large
from deconv_cli.vocabulary import nearest_name

WRONG_WORDS: Any = typer.BadParameter.__base__
"""The base of all errors of a command line; which package it comes from depends on Typer."""


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

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        """Print the help with the first sentences of the commands, which are not imported for that."""
        listed = {name: TyperCommand(name, help=first_sentence(*place[:2])) for name, place in self.places.items()}
        known, self.commands = self.commands, self.commands | listed
        super().format_help(ctx, formatter)
        self.commands = known


def first_sentence(module: str, function: str) -> str:
    """Read the first line of the docstring of a command from its source."""
    source = Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8")
    return source.partition(f"\ndef {function}(")[2].partition('"""')[2].partition("\n")[0].removesuffix('"""')


class ErrorBoundary(LazyGroup):
    """The commands at the top, with their errors in one sentence; a bug keeps its traceback."""

    places: ClassVar = {
        "forward": ("forward", "forward", "EXAMPLE"),
        "invert": ("invert", "invert", "EXAMPLE"),
        "inspect": ("inspect", "inspect", "EXAMPLE"),
        "check-grad": ("check_grad", "check_grad", "EXAMPLE"),
        "fisher": ("fisher", "fisher", "EXAMPLE"),
        "demo": ("demo", "demo", "EXAMPLE"),
    }

    def make_context(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        """Read the command line, and print the help or the version where it asks for them."""
        with _reported():
            # An empty path is the current folder for Python, with everything in it.
            words = list(args[1] if len(args) > 1 else options.get("args", ()))
            if "--run" not in words and any(not word or re.fullmatch("--[^=]+=", word) for word in words):
                raise UsageError(
                    "one argument of the command is empty, perhaps because a shell variable is not set; fill it in."
                )
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
        "microscope": ("microscope_kernel", "microscope", "EXAMPLE"),
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
        from deconv_cli.prompt_sentences import with_options

        print_error(with_options(str(found)))
        raise typer.Exit(exit_code_for(found)) from error
    except WRONG_WORDS as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        print_error(_sentence_of(error))
        raise typer.Exit(ExitCode.USAGE) from error
    except KeyboardInterrupt as error:
        print_error("interrupted; unfinished files were not written.")
        raise typer.Exit(ExitCode.INTERRUPTED) from error


def _sentence_of(error: Any) -> str:  # noqa: ANN401
    """Write an error of the command line as one sentence, with the nearest option and the place of the help."""
    names = {name.strip("-"): name for name in getattr(error, "possibilities", None) or ()}
    text = " ".join((error.message if names else error.format_message()).split()).rstrip(".")
    text = re.sub("(?i)value error, |, unable to parse string as an? \\w+", "", text)
    text = re.sub("': [A-Z]", lambda found: found[0].lower(), text)
    meant = nearest_name(names, text.rpartition(" ")[2].strip("-"))
    hint = f"; perhaps you mean {names[meant]}" if meant else ""
    command = "" if error.ctx is None else f"; see {error.ctx.command_path} --help"
    return f"{text[:1].lower()}{text[1:]}{hint}{command}."


app = typer.Typer(
    name="deconv",
    cls=ErrorBoundary,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Undo a convolution: restore images and feature tensors from the kernel that blurred or mixed them.",
    epilog="Help for a command: deconv invert --help",
)
app.add_typer(
    typer.Typer(
        cls=KernelGroup,
        help="Make, measure or check a kernel.",
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
    # Python looks for garbage among all objects of torch as it ends, which takes a third of a second.
    atexit.register(gc.freeze)
    keep_freed_memory()
    prepare_streams()
    app(prog_name="deconv")
