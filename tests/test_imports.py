"""Imports point down only, optional packages wait until they are needed, and help comes at once."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import gpbackprop

PACKAGE = Path(gpbackprop.__file__).parent

# From the ground up: a room imports rooms of the lines above its own line.
HOUSE = [
    {"errors", "__version__"},  # floor 0
    {"spec", "backend", "lock"},
    {"plan", "initializers"},  # 1
    {"layers", "losses", "optim", "metrics", "data", "checkpoint"},  # 2
    {"settings", "passes"},
    {"monitor", "diagnosis", "sizes"},  # 3
    {"steps"},
    {"trainer"},
    {"config", "gradcheck", "due", ""},  # 4; "" is `import gpbackprop`, whose names come from here and below
    {"logfile", "recorder", "restoring", "stopping", "numerics"},  # 5
    {"run", "tracing"},
    {"model"},
    {"verification"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(HOUSE) for room in rooms}

# The front doors, which stand outside the house: `import gpbackprop` and `python -m gpbackprop`.
DOORS = {"__init__", "__main__"}

DEPENDENCIES = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
CORE = {re.match(r"[\w-]+", text)[0].replace("-", "_") for text in DEPENDENCIES} | {"gpbackprop", "pydantic_core"}

# A room that is nothing without an optional package: it is imported where somebody asks for it.
WITHOUT = "backend.native"

MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """`layers.dense` for gpbackprop/layers/dense.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(path: Path, *, inside_functions: bool = True):
    """Each (line, dotted name) that a module imports; blocks under TYPE_CHECKING never run and are left out."""
    package = ["gpbackprop", *path.relative_to(PACKAGE).parts[:-1]]
    waiting = [ast.parse(path.read_text(encoding="utf-8"), path)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif is_type_checking(node):
            waiting.extend(node.orelse)
        elif inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))


def test_every_room_has_a_floor():
    rooms = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert rooms - DOORS - set(LEVEL) == set()


@pytest.mark.parametrize("path", [p for p in MODULES if name_of(p) not in DOORS], ids=name_of)
def test_a_module_imports_only_from_floors_below_its_own(path):
    room = name_of(path).partition(".")[0]
    wrong = []
    for line, name in imports(path):
        top, other, *_ = *name.split("."), ""
        if top == "gpbackprop" and other != room and LEVEL.get(other, len(HOUSE)) >= LEVEL.get(room, 0):
            wrong.append(f"{path}:{line}: imports {name}, which is not below {room}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", [p for p in MODULES if not name_of(p).startswith(WITHOUT)], ids=name_of)
def test_an_optional_package_is_imported_only_where_it_is_used(path):
    wrong = []
    for line, name in imports(path, inside_functions=False):
        top = name.partition(".")[0]
        if name.removeprefix("gpbackprop.").startswith(WITHOUT):
            wrong.append(f"{path}:{line}: imports {name}, and with it an optional package")
        if top not in CORE and top not in sys.stdlib_module_names:
            wrong.append(
                f"{path}:{line}: imports {name} when it is imported itself; do it in the function that needs it"
            )
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_come_without_the_heavy_packages(option):
    command = [sys.executable, "-X", "importtime", "-m", "gpbackprop", option]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip()
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert "gpbackprop" in imported
    assert not imported & {"numpy", "h5py", "pydantic", "cupy"}


def test_dir_lists_the_names_of_the_package_and_nothing_that_it_imports():
    names = {name for name in dir(gpbackprop) if not name.startswith("__")}
    assert {"Dense", "Trainer", "SGD", "SoftmaxCrossEntropy", "data", "load"} <= names
    assert not names & {"Any", "TYPE_CHECKING", "importlib"}
    assert not [name for name in names if name.startswith("_")]
