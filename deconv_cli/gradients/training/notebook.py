"""Notebooks run cell by cell in one namespace, with lines that are named by their cell."""

from __future__ import annotations

import json
import linecache
import sys
from pathlib import Path
from types import ModuleType

from deconv_cli.errors import UsageError

_MAGIC = ("%", "!", "?")
"""Lines for the notebook itself and not for Python, which are left out."""


def run_notebook(path: Path) -> None:
    """Run the code of a notebook as `__main__`.

    Raises:
        UsageError: the file is no notebook.
    """
    cells = _code_cells(path)
    module, kept = ModuleType("__main__"), sys.modules["__main__"]
    module.__dict__["__file__"] = str(path)
    sys.modules["__main__"] = module
    try:
        for number, source in enumerate(cells, start=1):
            name = f"{path} cell {number}"
            # Without a time of change, the lines are kept though there is no such file.
            linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
            exec(compile(source, name, "exec"), module.__dict__)  # noqa: S102  the user asks for it to be run
    finally:
        sys.modules["__main__"] = kept


def _code_cells(path: Path) -> list[str]:
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"'{path}' should be a notebook, but holds no cells of one.") from error
    return ["\n".join("" if line.startswith(_MAGIC) else line for line in source.split("\n")) for source in sources]
