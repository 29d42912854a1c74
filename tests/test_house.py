"""The house stays as it is drawn: small files, no circles, contracts instead of questions, and the README's tree."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "reverie"
FILES = sorted(PACKAGE.rglob("*.py"))
MOST = {"file": 500, ast.ClassDef: 300, ast.FunctionDef: 70}  # lines


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def large(path: Path) -> Iterator[str]:
    """What of a file has more lines than it should."""
    text = path.read_text()
    if len(text.splitlines()) > MOST["file"]:
        yield name(path)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.end_lineno - node.lineno >= MOST[type(node)]:
            yield f"{name(path)}: {node.name}"


def test_files_classes_and_functions_are_small() -> None:
    found = {x for path in FILES for x in large(path)}
    assert found == set(), "divide it: find the object that is hiding there"


@pytest.mark.parametrize(
    "path", [x for x in FILES if name(x).startswith("run/")] + [PACKAGE / "api.py", PACKAGE / "trained.py"], ids=name
)
def test_nobody_asks_an_agent_an_env_or_a_collector_what_it_is(path: Path) -> None:
    """They answer a contract: `agent.as_divided` and its like, `mode` of envs, `Collector`."""
    ours = re.compile(
        r"\b(Agent|Dreamer|MuZero|Divided|Searches|Drives|\w*Collector|Workers|DeviceEnvs?|GymEnv|LoadedAgent|Env)\b"
    )
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    asked = [ast.unparse(n) for n in calls if isinstance(n.func, ast.Name) and n.func.id == "isinstance"]
    assert [x for x in asked if ours.search(x.partition(", ")[2])] == []


def imports(path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules of ours that a file imports, at the top or later."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {x if x in modules else str(node.module) for x in full}
    return found & modules.keys()


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = {".".join(("reverie", *x.relative_to(PACKAGE).with_suffix("").parts)): x for x in FILES}
    modules = {key.removesuffix(".__init__"): path for key, path in modules.items()}
    left = {key: imports(path, modules) - {key} for key, path in modules.items()}
    while free := {key for key, needs in left.items() if not needs & left.keys()}:
        left = {key: needs for key, needs in left.items() if key not in free}
    assert left == {}, "these import each other, or what does"


def drawn() -> tuple[set[str], set[str]]:
    """Files and folders of the package as README draws them."""
    readme = (PACKAGE.parent / "README.md").read_text()
    tree = readme.partition("```\nreverie/\n")[2].partition("\ntests/")[0]
    files: set[str] = set()
    folders: list[str] = []
    folder = [""] * 3  # by depth
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        if depth <= 2:
            begins = re.match(r" *(\w+/)", line)
            folder[depth] = (folder[1] if depth == 2 else "") + begins[1] if begins else folder[1] * (depth == 2)
            folders += [folder[depth]] * bool(begins)
            here = folder[depth]
        files |= {here + x for x in re.findall(r"\b\w+\.py\b", line)}
    return files, {*folders}


def test_the_readme_draws_the_tree_as_it_is() -> None:
    files, folders = drawn()
    assert files == {name(path) for path in FILES if path.name != "__init__.py"}
    assert folders == {f"{name(path.parent)}/" for path in FILES if path.name == "__init__.py"} - {"./"}
