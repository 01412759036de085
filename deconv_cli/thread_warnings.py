"""Warnings as errors, or ignored, in one thread only.

`warnings.catch_warnings` acts on all threads, and the last of two threads to leave restores the filters of the first.
Here the filters stay, and match only in the thread that is inside.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

_Action = Literal["error", "ignore"]


class _Chosen(threading.local):
    """The action of this thread on warnings, if it is inside."""

    action: _Action | None = None


_CHOSEN = _Chosen()


class _ByThread(type):
    """Makes a category that contains every warning, in the threads that have chosen its action."""

    action: _Action

    def __subclasscheck__(cls, category: type) -> bool:
        """Return whether this thread has chosen the action."""
        return _CHOSEN.action == cls.action


class _MadeErrors(Warning, metaclass=_ByThread):
    action = "error"


class _Ignored(Warning, metaclass=_ByThread):
    action = "ignore"


_CATEGORIES: dict[_Action, type[Warning]] = {"error": _MadeErrors, "ignore": _Ignored}


@contextmanager
def warnings_here(action: _Action) -> Iterator[None]:
    """Turn the warnings of this thread into errors, or ignore them; those of other threads do not change."""
    before = _CHOSEN.action
    # Put in front again each time: that also makes Python forget which warnings it has shown once already.
    warnings.simplefilter(action, _CATEGORIES[action])
    _CHOSEN.action = action
    try:
        yield
    finally:
        _CHOSEN.action = before
