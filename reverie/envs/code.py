"""Code by its name: what a name would run, where it is found, and what of it may be called."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from reverie.errors import PlainError


class UnusableEnv(PlainError, ValueError):
    """The env as named cannot be used; the message says what to type, install or change instead."""


def wording(module: str, name: str = "", arguments: Mapping[str, Any] | None = None) -> str:
    """The code that runs when `name` is found in a module or in path/to/file.py, and called; in words."""
    brought = f"run the file {str(Path(module).resolve())!r}" if module.endswith(".py") else f"import {module!r}"
    given = ", ".join(f"{key}={value!r}" for key, value in (arguments or {}).items())
    return f"{brought} and call {name}({given})" if name else brought


def of_library(module: str) -> bool:
    """Whether a module is Python's own: there are no envs in it, and much that does harm."""
    return not module.endswith(".py") and module.partition(".")[0] in sys.stdlib_module_names


def check_function(target: Any, name: str) -> None:
    """Raises UnusableEnv for what cannot be called, or was written in Python's own library.

    Args:
      name: as it was typed, for the message.
    """
    if not callable(target):
        raise UnusableEnv(
            f"{name} is a {type(target).__name__}, expected a class or a function that builds "
            "an env (an env that is already built cannot be built again)"
        )
    written = target
    while isinstance(written, functools.partial):
        written = written.func
    written = getattr(written, "__func__", written)  # of a method
    if not (inspect.isclass(written) or inspect.isroutine(written)):
        written = type(written)
    _refuse_library(written.__module__ or "builtins", name)


def check_builder(target: Any, name: str) -> None:
    """`check_function`; and raises UnusableEnv for a class that is none of envs. Before anything is called."""
    check_function(target, name)
    steps = any(all(hasattr(target, x) for x in methods) for methods in (("reset", "step"), ("init", "step", "row")))
    if inspect.isclass(target) and not steps:
        raise UnusableEnv(f"{name} is a class without reset() and step(), expected `class MyEnv(gymnasium.Env):`")


def _refuse_library(module: str, name: str = "") -> None:
    if of_library(module):
        what = f"{name} is of {module!r}, which" if name else f"{module!r}"
        raise UnusableEnv(
            f"{what} is a module of Python's own library, where no envs are: expected module:EnvClass of another, or "
            "path/to/file.py:EnvClass"
        )


def find(module: str, name: str) -> Any:
    """The object `name` (dots allowed) of a module or of path/to/file.py; raises UnusableEnv if there is none."""
    found: Any = _file(module) if module.endswith(".py") else load(module)
    for part in name.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "nothing there is called like it"
            raise UnusableEnv(f"{module} has no {part!r}: {hint}")
        found = getattr(found, part)
    return found


def load(module: str) -> ModuleType:
    """A module by its name, also one in the current directory; raises UnusableEnv if there is none."""
    _refuse_library(module)
    here = os.getcwd()
    own = module.partition(".")[0] == "reverie"
    if not own and here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)  # the console script, unlike `python -m`, does not look here
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(error.name + ".")):
            raise UnusableEnv(
                f"no module {module!r} in {here} or on sys.path: expected a Gymnasium id, "
                "module:EnvClass, or path/to/file.py:EnvClass"
            ) from None
        _explain_gym(module, error)
        raise


def _explain_gym(module: str, error: ModuleNotFoundError) -> None:
    """Raises UnusableEnv where a module looks for the old `gym` package, which is not here."""
    if error.name and error.name.partition(".")[0] == "gym":
        raise UnusableEnv(
            f"{module} imports the old `gym` package, which is not installed: write `import gymnasium as gym`, return "
            "obs, info from reset(seed=...) and five values from step()"
        ) from error


def _file(path: str) -> ModuleType:
    file = Path(path).resolve()
    if not file.is_file():
        raise UnusableEnv(f"no file {file}, expected path/to/file.py:name")
    # A name of its own, so that a user's random.py cannot replace the standard one.
    name = f"reverie_file_{file.stem}_{abs(hash(str(file))):x}"
    if name in sys.modules:
        return sys.modules[name]
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None, file
    assert spec.loader is not None, file
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]  # half a module must not pass for a whole one the next time
        if isinstance(error, ModuleNotFoundError):
            _explain_gym(path, error)
        raise
    return module
