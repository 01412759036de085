"""The pages of the site keep their word: commands and code run, links lead somewhere, tables are complete."""

import ast
import re
import shlex
import sys

import numpy as np
import pytest
import torch
import typer
from pages import README, ROOT, SITE, blocks, commands, open_samples, run

import deconv_cli
from deconv_cli.commands.app import app
from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.io import read_image

DOCS = ROOT / "docs"
EXAMPLES = sorted((DOCS / "examples").rglob("plot_*.py"))
QUICK = ("start/index",)
"""Pages whose commands are run by the quick suite; README and the other tests run much the same."""
ELSEWHERE = ("extending", "howto/clusters")
"""Pages with a test of their own."""


def name_of(page):
    return page.relative_to(ROOT if page == README else DOCS).with_suffix("").as_posix()


def marked(pages):
    return [
        pytest.param(page, id=name_of(page), marks=() if name_of(page) in QUICK else pytest.mark.exhaustive)
        for page in pages
    ]


@pytest.mark.parametrize("page", marked(p for p in SITE if commands(p) and name_of(p) not in ELSEWHERE))
def test_every_command_runs(page, tmp_path, monkeypatch):
    open_samples(tmp_path, monkeypatch)
    for line in commands(page):
        run(line)
    if name_of(page) == "howto/stacks":
        check_stacks()


def check_stacks():
    """A real stack keeps its metadata, and is nearer to the truth than what was seen."""
    stacks = ("sample_images/pollen.ome.tif", "restored.ome.tif", "blurred.ome.tif")
    source, restored, blurred = (read_image(ROOT.__class__(name)).spanned_by(3) for name in stacks)
    assert (restored.axes, restored.shape, restored.spacing) == (source.axes, source.shape, source.spacing)
    errors = [(image.values - source.values.double()).norm() for image in (restored, blurred)]
    assert errors[0] < 0.75 * errors[1]


CODED = [page for page in SITE if blocks("python", page) and name_of(page) not in ELSEWHERE]


@pytest.mark.parametrize("page", CODED, ids=name_of)
def test_every_python_block_runs(page, tmp_path, monkeypatch):
    open_samples(tmp_path, monkeypatch)
    torch.manual_seed(0)
    names = {"__name__": "page"}
    for code in blocks("python", page):
        exec(compile(code, str(page), "exec"), names)
    if name_of(page) == "howto/stacks":
        one, both = ((names[name].image - names["stack"]).norm() for name in ("one", "both"))
        assert both < 0.95 * one
        np.testing.assert_array_equal(names["plane_by_plane"].shape, (1, 16, 24, 24))


def typed_lines(page):
    """All lines of a page that call deconv, those too that need files of the reader."""
    shell = "\n".join(blocks("sh", page)).replace("\\\n", " ").splitlines()
    return commands(page) + [line for line in shell if line.startswith("deconv ")]


def example_lines(path):
    """The commands of an example of the gallery."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    lines = [call.args[0] for call in calls if getattr(call.func, "id", "") == "prompt"]
    return [ast.unparse(line).strip("f'\"") for line in lines]


@pytest.mark.parametrize("page", [README, *SITE, *EXAMPLES], ids=lambda page: page.stem)
def test_every_option_is_one_of_its_command(page):
    for line in example_lines(page) if page.suffix == ".py" else typed_lines(page):
        words, command = shlex.split(line.partition(" -- ")[0])[1:], typer.main.get_command(app)
        while hasattr(command, "commands") and not words[0].startswith("-"):
            command = command.get_command(None, words.pop(0)) or pytest.fail(line)
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        assert {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)} <= known, line


def test_every_option_in_the_text_exists():
    commands = [typer.main.get_command(app)]
    for command in commands:
        commands += [command.get_command(None, name) for name in getattr(command, "commands", ())]
    known = {name for command in commands for p in command.params for name in (*p.opts, *p.secondary_opts)}
    for page in [README, *SITE]:
        named = re.findall(r"`(--[a-z-]+)", page.read_text(encoding="utf-8"))
        assert set(named) <= known | {"--help"}, page


@pytest.mark.parametrize("page", [README, *SITE], ids=name_of)
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        target = (page.parent / link).resolve()
        if target.is_relative_to(DOCS / "gallery"):  # made from the examples; a code host has none of its pages
            source = DOCS / "examples" / target.relative_to(DOCS / "gallery")
            assert source.parent.name == "images", f"link to {source.name} below examples instead"
            target = source.parents[1] / re.sub(r"sphx_glr_(.*)_\d+$", r"\1.py", source.stem)
        assert target.exists(), link


def test_the_gallery_has_an_example_of_each_kind():
    assert len(EXAMPLES) >= 20
    assert all(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) for path in EXAMPLES)


def text_of(name):
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def test_the_architecture_page_names_files_that_exist():
    named = sorted(set(re.findall(r"`([\w/]+\.(?:py|yaml))`", text_of("architecture"))))
    assert len(named) > 20
    assert [name for name in named if not any((ROOT / "deconv_cli").rglob(name)) and not (ROOT / name).is_file()] == []


def test_tables_of_the_reference_are_complete():
    assert all(f"| `{name}` |" in text_of("reference/boundaries") for name in deconv_cli.BOUNDARIES)
    assert all(f"| {int(code)} |" in text_of("reference/exit_codes") for code in ExitCode)
    assert all(f"`{name}:" in text_of("reference/formulas") for name in deconv_cli.KERNEL_SOURCES)
    library = text_of("reference/library")
    assert [name for name in deconv_cli.__all__ if name[0] != "_" and f"deconv_cli.{name}\n" not in library
            and f"deconv_cli.{name}``" not in library] == []  # fmt: skip


def test_the_reference_lists_every_option(monkeypatch):
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(DOCS / "_ext")
    monkeypatch.delitem(sys.modules, "command_reference", raising=False)
    from command_reference import CommandReference, all_commands, find_command

    assert {"invert", "kernel from-beads"} <= set(all_commands())
    for name in all_commands():
        described = [CommandReference.describe(parameter) for parameter in find_command(name.split()).params]
        assert all(len(text.strip(": ")) > 10 for _, text in described), name


def test_the_check_of_links_finds_what_leads_nowhere(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "_ext")
    from check_links import broken_links

    (tmp_path / "there.html").write_text('<h1 id="top">There</h1> <a href="https://example.org">away</a>')
    links = ["there.html", "there.html#top", "#here", "absent.html", "there.html#absent"]
    text = "".join(f'<a id="here" href="{link}">link</a>' for link in links)
    loaded = '<img src="absent.png"><script src="https://example.org/a.js"></script>'
    (tmp_path / "page.html").write_text(text + loaded)
    found = [line.removeprefix("page.html: ") for line in broken_links(tmp_path)]
    assert found == ["absent.html", "absent.png", "https://example.org/a.js", "there.html#absent"]
