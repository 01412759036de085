"""The code of docs/batches.md runs, and does what the page says."""

import re
from pathlib import Path

import torch

PAGE = (Path(__file__).parents[1] / "docs" / "batches.md").read_text(encoding="utf-8")


def test_the_code_runs():
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    names = {}
    exec(code, names)
    assert [tuple(image.shape) for image in names["restored"]] == [(1, 64, 48)] * 5
    assert not torch.equal(names["restored"][0], names["restored"][1])
