"""How long the stages of a piece of work took, told to whoever asked: the server's metrics and its log.

Costs nothing to speak of where nobody asked (indexing, the command line).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

observer: ContextVar[Callable[[str, float], None] | None] = ContextVar("stages", default=None)
"""Called with a stage's name and its seconds; of one request, and of the threads that work for it."""


def timed(stage: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """``function(*args, **kwargs)``, its time told as ``stage``, also where it fails."""
    tell = observer.get()
    if tell is None:
        return function(*args, **kwargs)
    start = time.perf_counter()
    try:
        return function(*args, **kwargs)
    finally:
        tell(stage, time.perf_counter() - start)
