"""The directive `deconv-commands`: the reference of all commands, read from the commands themselves.

It lists what `deconv COMMAND --help` lists: usage, purpose, example, and the options by panel.
"""

from __future__ import annotations

from typing import Any

import typer
from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.parsing import nested_parse_to_nodes

from deconv_cli.commands.app import app

FIRST_PANELS = {"argument": "Arguments", "option": "Options"}
"""Names of the panels of parameters that name none."""


def find_command(words: list[str]) -> Any:  # noqa: ANN401
    """Follow the names of a command, such as `kernel fit`, from the application to the command."""
    command = typer.main.get_command(app)
    for word in words:
        command = command.get_command(None, word)
    return command


def all_commands() -> list[str]:
    """List the names of all commands, such as `invert` and `kernel fit`."""

    def names(command: Any, prefix: str) -> list[str]:  # noqa: ANN401
        if not hasattr(command, "commands"):
            return [prefix]
        parts = {name: command.get_command(None, name) for name in command.list_commands(None)}
        return [found for name, part in parts.items() for found in names(part, f"{prefix} {name}".strip())]

    return names(typer.main.get_command(app), "")


def value_name(parameter: Any) -> str:  # noqa: ANN401
    """Give the name of the value that an option takes, as the help shows it; empty for a flag."""
    if getattr(parameter, "is_flag", False):
        return ""
    if parameter.metavar:
        return parameter.metavar
    kind = parameter.type_descriptor.annotation
    if hasattr(kind, "__members__"):
        return "|".join(str(member.value) for member in kind)
    return getattr(kind, "__name__", str(kind)).upper()


def default_sentence(parameter: Any) -> str:  # noqa: ANN401
    """Say the default where the help says it in brackets."""
    value = getattr(parameter.default, "value", parameter.default)
    is_shown = parameter.show_default and not getattr(parameter, "is_flag", False)
    return f" Default: `{value}`." if is_shown and value not in (None, [], ()) else ""


def usage(words: list[str], command: Any) -> str:  # noqa: ANN401
    """Write the first line of the help."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    shown = [p.metavar or p.name.upper() for p in arguments]
    return " ".join(["deconv", *words, "[OPTIONS]", *shown])


class CommandReference(Directive):
    """Describe all commands, each in a section of its own."""

    def run(self) -> list[nodes.Node]:
        """Make a list of all commands, and a section for each."""
        names = all_commands()
        listed = nodes.bullet_list()
        for name in names:
            title, purpose = f"deconv {name}", find_command(name.split()).help.partition("\n\n")[0]
            link = nodes.reference("", "", nodes.literal(text=title), refid=nodes.make_id(title), internal=True)
            listed += nodes.list_item("", nodes.paragraph("", "", link, nodes.Text(f": {' '.join(purpose.split())}")))
        return [listed, *(self.section_of(name) for name in names)]

    def section_of(self, name: str) -> nodes.section:
        """Write the description of one command as Markdown, and have it parsed."""
        words = name.split()
        command = find_command(words)
        lines = [*command.help.splitlines(), "", "```text", usage(words, command), "```", ""]
        if command.epilog:
            lines += ["```sh", f"{command.epilog.removeprefix('Example: ')}", "```", ""]
        panels: dict[str, list[Any]] = {}
        for parameter in command.params:
            if not getattr(parameter, "hidden", False):
                kind = parameter.param_type_name
                panels.setdefault(parameter.rich_help_panel or FIRST_PANELS[kind], []).append(parameter)
        for panel, parameters in panels.items():
            lines += [f"```{{rubric}} {panel}", "```", ""]
            for parameter in parameters:
                lines += [*self.describe(parameter), ""]
        section = nodes.section(ids=[nodes.make_id(f"deconv {name}")], names=[f"deconv {name}"])
        section += nodes.title(text=f"deconv {name}")
        self.state.document.note_implicit_target(section)
        text = StringList("\n".join(lines).splitlines(), source=f"deconv {name}")
        section += nested_parse_to_nodes(self.state, text, source=f"deconv {name}")
        return section

    @staticmethod
    def describe(parameter: Any) -> list[str]:  # noqa: ANN401
        """Describe one argument or option."""
        if parameter.param_type_name == "argument":
            names = parameter.metavar or parameter.name.upper()
        else:
            names = f"{', '.join([*parameter.opts, *parameter.secondary_opts])} {value_name(parameter)}".strip()
        required = " Required." if parameter.required else ""
        text = " ".join((parameter.help or "").split())
        for sign in "*|`_<>{}":
            text = text.replace(sign, f"\\{sign}")
        return [f"`{names}`", f": {text}{required}{default_sentence(parameter)}"]


def setup(application: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    application.add_directive("deconv-commands", CommandReference)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
