"""The type checkers that conftest.py puts around every function of the package."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

# An int where a float is annotated is right, as type checkers read it (PEP 484).
check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check_every_call() -> None:
    """Before anything imports the package: arguments and results are held against their annotations at every call.

    Where a file speaks of shapes, those of one call are compared with one another, by a wrapper that costs tens of
    microseconds. Elsewhere, in what a run on the host calls a hundred thousand times, the checker does alone; and of a
    function inside another, which is made anew whenever that is called, the first few are wrapped.
    """
    files = (Path(__file__).parents[1] / "reverie").rglob("*.py")
    shaped = {str(file) for file in files if "from jaxtyping import" in file.read_text()}
    compared, made = jaxtyping.jaxtyped, Counter[Any]()

    def jaxtyped(**given: Any) -> Callable[[Any], Any]:
        def wrapped(it: Any) -> Any:
            if not inspect.isfunction(it) or it.__code__.co_filename in shaped:
                return compared(**given)(it)
            made[it.__code__] += 1
            return check(it) if made[it.__code__] <= 5 else it

        return wrapped

    jaxtyping.jaxtyped = jaxtyped
    jaxtyping.install_import_hook("reverie", "annotations.check")
