"""Pickles that leave a trace where they are run."""

import os
from pathlib import Path


class MakesFolder:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)
