"""The house stays as it is drawn: small files, no circles, contracts instead of questions, the README's tree, names
that are nouns and verbs, and texts that stand alone."""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import FrameType

import docstring_parser
import pytest

from reverie import algos

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
    """They answer a contract: `agent.as_two_phase` and its like, `mode` of envs, `Collector`."""
    ours = re.compile(
        r"\b(Agent|Dreamer|MuZero|TwoPhaseAgent|JittedAgent|Searches|Drives|\w*Collector|Workers|DeviceEnvs?|GymEnv|LoadedAgent|Env)\b"
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


# ---------------------------------------------------------------------------------------------------------------- words

# Past participles that do not end in -ed, and words in -ed that are none.
IRREGULAR = {
    "drawn",
    "given",
    "found",
    "known",
    "taken",
    "seen",
    "told",
    "kept",
    "made",
    "held",
    "written",
    "gone",
    "said",
    "hidden",
    "chosen",
    "won",
    "built",
}
IRREGULAR |= {
    "met",
    "heard",
    "left",
    "lost",
    "meant",
    "born",
    "thought",
    "understood",
    "spent",
    "got",
    "sent",
    "worn",
    "broken",
    "frozen",
    "shown",
}
NO_PARTICIPLE = {"seed", "feed", "need", "speed", "embed", "red", "pred", "indeed"}


def identifiers() -> set[str]:
    """Every name that the package defines: functions, classes, arguments, variables and attributes."""
    found = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.arg):
                found.add(node.arg)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
    return found


def is_participle(word: str) -> bool:
    last = word.lower().rstrip("0123456789").rpartition("_")[2]
    return last in IRREGULAR or (last.endswith("ed") and last not in NO_PARTICIPLE)


def test_names_are_nouns_and_verbs() -> None:
    """A name that ends in a participle says what was done, not what it is."""
    names = identifiers()
    found = sorted(word for word in names if is_participle(word))
    assert len(found) <= 0.03 * len(names), f"{len(found)} of {len(names)}: {' '.join(found)}"
    assert {is_participle(x) for x in ("weighed", "as_seen", "_told")} == {True}
    assert {is_participle(x) for x in ("weigh", "speed", "seed", "loss")} == {False}


def texts() -> Iterator[tuple[str, str]]:
    """Place and text of every docstring, those of fields included."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            for child in getattr(node, "body", []) if not isinstance(node, ast.Lambda | ast.IfExp) else []:
                if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                    yield f"{name(path)}:{child.lineno}", str(child.value.value)


def test_texts_stand_alone() -> None:
    """A docstring names its subject: it neither asks what, nor leans on the line above it."""
    found = [place for place, text in texts() if re.match(r"(What|Whatever|Of) ", text)]
    assert found == []
    assert sum(1 for _ in texts()) > 1000


@pytest.mark.parametrize("algorithm", algos.ALGORITHMS)
def test_an_algorithm_has_few_flags_and_each_says_what_it_is(algorithm: str) -> None:
    config = algos.load(algorithm).Config
    assert len(fields(config)) <= 35
    said = {
        x.arg_name: x.description
        for kind in config.__mro__[:-1]
        for x in docstring_parser.parse_from_object(kind).params
    }
    assert [field.name for field in fields(config) if not said.get(field.name)] == []


@pytest.mark.parametrize("algorithm", algos.ALGORITHMS)
def test_every_flag_of_an_algorithm_is_read(algorithm: str) -> None:
    """By the code of its family, or of what every agent is made of."""
    folder = PACKAGE / "algos" / algos.module(algorithm).split(".")[2]
    code = [*folder.glob("*.py"), *(PACKAGE / "behavior").glob("*.py"), PACKAGE / "algos" / "choices.py"]
    read = {n.attr for p in code for n in ast.walk(ast.parse(p.read_text())) if isinstance(n, ast.Attribute)}
    assert {field.name for field in fields(algos.load(algorithm).Config)} - read == set()
    constants = algos.load(algorithm).Config()
    if hasattr(constants, "paper"):
        assert {field.name for field in fields(constants.paper())} - read == set()


# ----------------------------------------------------------------------------------------------------------------- hops


def hops(verb: list[str], ends: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The functions of the package between the command line and the first call of a function, each counted once."""
    calls: list[str] = []

    def watch(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_qualname == ends and not calls:
            while frame:
                path = Path(frame.f_code.co_filename)
                if path.is_relative_to(PACKAGE) and not frame.f_code.co_name.startswith("<"):
                    calls.append(f"{name(path)}: {frame.f_code.co_qualname.rpartition('<locals>.')[2]}")
                frame = frame.f_back  # type: ignore[assignment]

    from reverie.cli import main

    monkeypatch.setattr("sys.argv", ["reverie", *verb])
    monkeypatch.setattr("reverie.run.counted_jit.CountedJit.compile_ahead", lambda *_: None)  # a thread, no caller
    sys.setprofile(watch)
    try:
        assert main(verb) == 0
    finally:
        sys.setprofile(None)
    return list(dict.fromkeys(reversed(calls)))


def test_few_hops_lead_from_the_command_line_to_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = "--size 200k --batch 2 --length 8 --envs 1 --warmup 16 --steps 20 --replay-ratio 4 --workers inline"
    quiet = "--preset paper --eval-episodes 0 --report-every 0 --video-every 0 --checkpoint-every 0 --imagination 2"
    verb = ["train", "dreamer_v3", "--env", "CartPole-v1", "--run", str(tmp_path), *small.split(), *quiet.split()]
    way = hops(verb, "Dreamer.loss", monkeypatch)
    assert (way[0], way[-1]) == ("cli.py: main", "algos/dreamer/agent.py: Dreamer.loss")
    assert len(way) <= 8, way
    readme = (PACKAGE.parent / "README.md").read_text()
    said = re.findall(r"^\d+\. `reverie/([\w/]+\.py: [\w.]+)`", readme, re.M)
    assert said == way, "README says the way"
