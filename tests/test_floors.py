"""The house plan, held by walking the syntax trees: who may import whom, and how large things may be."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "longwave"
FLOORS = {
    "process": 0,
    "ops": 0,
    "data": 0,
    "modules": 1,
    "mixers": 2,
    "model": 3,
    "verification": 4,
    "evaluation": 4,
    "training": 5,
    "benchmarks": 5,
    "diagnostics": 5,
    "transplant": 6,
    "comparison": 6,
    "compat": 7,
    "cli": 8,
}
#: Folders of data, which hold no code.
DATA = {"presets"}
KERNELS = ("longwave.ops.numba", "longwave.ops.triton")
LONGEST_FILE, LONGEST_FUNCTION = 400, 60

FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def module_of(path: Path) -> str:
    """Dotted name of a file, that of the folder for its ``__init__``."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def room_of(module: str) -> str:
    """The part of a dotted name below the package: ``""`` for the package itself."""
    return module.split(".")[1] if "." in module else ""


def is_kernel(module: str) -> bool:
    return module.startswith(KERNELS)


def targets(node: ast.AST, package: str) -> Iterator[str]:
    """Modules that one node imports, dynamic imports by a written name included."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        name = "." * node.level + (node.module or "")
        base = importlib.util.resolve_name(name, package) if node.level else name
        for alias in node.names:
            inner = f"{base}.{alias.name}"
            yield inner if inner in MODULES else base
    elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
        "import_module",
        "__import__",
        "find_spec",
    ):
        match node.args:
            case [ast.Constant(value=str(name)), *_]:
                yield name


def imports(path: Path, tree: ast.AST | None = None) -> set[str]:
    """Every module that a file imports, wherever in the file it does."""
    module = module_of(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return {name for node in ast.walk(tree or TREES[path]) for name in targets(node, package)}


def own(names: set[str]) -> set[str]:
    return {name for name in names if name == "longwave" or name.startswith("longwave.")}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


class TestTheWalker:
    """The rules below are worth as much as what the walker sees."""

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("import longwave.model", "longwave.model"),
            ("def f():\n    from longwave.model import cache", "longwave.model.cache"),
            ("from longwave.model.cache import LongwaveCache", "longwave.model.cache"),
            ("from longwave import model", "longwave.model"),
            ("from . import hale", "longwave.mixers.hale"),
            ("from ..model import LongwaveConfig", "longwave.model"),
            ("if TYPE_CHECKING:\n    import longwave.training", "longwave.training"),
            ("import importlib\nimportlib.import_module('longwave.cli')", "longwave.cli"),
        ],
    )
    def test_sees_every_way_to_import(self, text, found):
        assert found in imports(PACKAGE / "mixers" / "base.py", ast.parse(text))

    def test_sees_the_package(self):
        assert {"ops", "data", "mixers", "model", "training", "cli"} <= {room_of(module) for module in MODULES}
        assert "longwave.ops" in imports(PACKAGE / "mixers" / "hale.py")


@each_file
def test_a_file_stands_in_a_room_of_the_plan(path):
    room = room_of(module_of(path))
    assert room in FLOORS or room in DATA or room == "", f"{room!r} is on no floor; add it to the plan first"


@each_file
def test_a_file_imports_from_lower_floors_and_its_own_room_only(path):
    room = room_of(module_of(path))
    if room == "":
        eager = {
            name
            for node in TREES[path].body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in own(set(targets(node, "longwave")))
        }
        assert not eager, "the package itself imports nothing of its own until it is asked to"
        return
    if room in DATA:
        assert not imports(path), "a folder of data imports nothing"
        return
    for name in own(imports(path)):
        other = room_of(name)
        assert other, f"{room} imports the package itself"
        assert other == room or FLOORS[other] < FLOORS[room], f"{room} imports {name}, which is not below it"


@each_file
def test_kernels_are_imported_by_the_dispatcher_alone(path):
    module = module_of(path)
    if module == "longwave.ops._dispatch" or is_kernel(module):
        return
    assert not {name for name in own(imports(path)) if is_kernel(name)}


def test_the_dispatcher_imports_kernels_when_it_is_asked_to():
    tree = TREES[PACKAGE / "ops" / "_dispatch.py"]
    eager = (name for node in tree.body for name in targets(node, "longwave.ops"))
    assert not [name for name in eager if is_kernel(name)]


@each_file
def test_numba_and_triton_are_used_by_kernels_alone(path):
    if not is_kernel(module_of(path)):
        assert not {name.split(".")[0] for name in imports(path)} & {"numba", "triton"}


@each_file
def test_matplotlib_is_used_by_diagnostics_alone(path):
    if room_of(module_of(path)) != "diagnostics":
        assert "matplotlib" not in {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("room", ["ops", "modules", "mixers"])
def test_mixers_work_without_transformers(room):
    for path in FILES:
        if room_of(module_of(path)) == room:
            assert "transformers" not in {name.split(".")[0] for name in imports(path)}, path


@each_file
def test_a_file_has_at_most_400_lines(path):
    assert is_kernel(module_of(path)) or len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


@each_file
def test_a_function_has_at_most_60_lines(path):
    if is_kernel(module_of(path)):
        return
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in functions(TREES[path])
        if node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION
    }
    assert not long


@each_file
def test_a_file_and_its_public_definitions_have_docstrings(path):
    tree = TREES[path]
    bare = [
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not bare
    assert ast.get_docstring(tree), "the file does not say what it is"
