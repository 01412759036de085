"""What a JSON record is made of."""

from __future__ import annotations

import math
from typing import Any

SCHEMA = 1
"""Version of the records; it changes where a name or a meaning changes that was released."""

Record = dict[str, Any]
"""An object of JSON: its members are objects, lists, texts, finite numbers, booleans and `None`."""


def finite_or_none(value: float | None) -> float | None:
    """Return a number if JSON can hold it, else `None`."""
    return value if value is not None and math.isfinite(value) else None
