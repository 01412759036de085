"""Templates of pages, which escape all text, and the names by which a browser knows their own scripts and styles."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from deconv_cli.report.key_numbers import all_numbers
from deconv_cli.report.record import Record

TEMPLATES = Path(__file__).parent / "templates"


def fill_template(name: str, record: Record, **contents: Any) -> str:  # noqa: ANN401  whatever a template shows
    """Fill a template of this package, with every number of a record; a value that it lacks is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    sheet = read_source("page.css")
    return environment.get_template(name).render(
        numbers=all_numbers(record),
        versions=record["versions"],
        sheet=sheet,
        sheet_hash=source_hash(sheet),
        **contents,
    )


def read_source(name: str) -> str:
    """Read a script or a style sheet."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def source_hash(source: str) -> str:
    """Name a script or a style sheet to the browser, so that it runs no other one."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode("utf-8")).digest()).decode("ascii")
