"""Content that a page carries inside itself."""

from __future__ import annotations

import base64


def data_uri(content: bytes, kind: str) -> str:
    """Write content of a media type as `data:image/png;base64,...`."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
