"""Warnings of one thread alone made errors, or silent.

`warnings.catch_warnings` puts back the filters that it found, so that of two threads the second to leave puts back
those of the first, and all threads have them meanwhile. Here the filters stay, and match in no thread but that which
is inside.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

_Action = Literal["error", "ignore"]


class _Chosen(threading.local):
    """What this thread does with warnings, if it is inside."""

    action: _Action | None = None


_CHOSEN = _Chosen()


class _ByThread(type):
    """Makes a category of warnings to which any warning belongs, in the threads that have chosen its action."""

    action: _Action

    def __subclasscheck__(cls, category: type) -> bool:
        """Tell whether this thread has chosen the action."""
        return _CHOSEN.action == cls.action


class _MadeErrors(Warning, metaclass=_ByThread):
    action = "error"


class _Ignored(Warning, metaclass=_ByThread):
    action = "ignore"


_CATEGORIES: dict[_Action, type[Warning]] = {"error": _MadeErrors, "ignore": _Ignored}


@contextmanager
def warnings_here(action: _Action) -> Iterator[None]:
    """Make the warnings of this thread errors, or ignore them; those of other threads are left as they are."""
    before = _CHOSEN.action
    # Put in front again each time: that also makes Python forget which warnings it has shown once already.
    warnings.simplefilter(action, _CATEGORIES[action])
    _CHOSEN.action = action
    try:
        yield
    finally:
        _CHOSEN.action = before
