"""Finds where our code relies on what a library does not promise: overrides, private names, and names set anew.

Names are written as `module:qualified.name`. What only a reader can see (a method of Celery's loop that is called, say) is
not found here: docs/couplings.md lists it all the same.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

LIBRARIES = frozenset(
    {"amqp", "billiard", "celery", "flower", "http", "kombu", "psycopg", "redis", "requests", "sqlalchemy", "tornado", "urllib3"}
)  # fmt: skip
_PUBLIC = frozenset({"_exit", "_fields", "_mapping", "_replace"})  # documented, for all their looks


class Coupling(NamedTuple):
    """`file` relies on `name`. `kind`: override, private, or set."""

    file: str
    name: str
    kind: str


def find_couplings(root: Path, packages: tuple[str, ...] = ("worker", "api_client")) -> set[Coupling]:
    """All that can be seen in the code below `root`. Imports every module that subclasses something."""
    files = [path for package in packages for path in sorted((root / package).rglob("*.py"))]
    files = [path for path in files if "versions" not in path.parts]
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in files}
    own = {name for tree in trees.values() for name in _defined(tree)}
    found: set[Coupling] = set()
    for path, tree in trees.items():
        file = str(path.relative_to(root))
        imported = _imported(tree)
        found |= {Coupling(file, name, "set") for name in _set_anew(tree, imported)}
        found |= {Coupling(file, name, "private") for name in _private_imports(tree)}
        if any(isinstance(node, ast.ClassDef) and node.bases for node in ast.walk(tree)) and imported:
            found |= set(_overrides(file))
        known = {one.name.rpartition(".")[2] for one in found if one.file == file}
        found |= {
            Coupling(file, f"?:{name}", "private")
            for name in _private_attributes(tree, own)
            if name not in known
        }
    return found


def _defined(tree: ast.Module) -> Iterator[str]:
    """Private names that are ours: functions, classes, variables, and what is set on `self`."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
            yield node.attr


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def _imported(tree: ast.Module) -> dict[str, str]:
    """Local names of modules and members of the libraries, with what they stand for."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in LIBRARIES:
                    found[alias.asname or alias.name.partition(".")[0]] = (
                        alias.name if alias.asname else alias.name.partition(".")[0]
                    )
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in LIBRARIES:
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return found


def _private_imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in LIBRARIES:
            for alias in node.names:
                if alias.name.startswith("_") or "._" in (node.module or ""):
                    yield f"{node.module}:{alias.name}"


def _set_anew(tree: ast.Module, imported: dict[str, str]) -> Iterator[str]:
    """Attributes of a library's modules or classes that our code assigns to."""
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else []
        for target in [
            one for each in targets for one in (each.elts if isinstance(each, ast.Tuple) else [each])
        ]:
            while isinstance(target, ast.Subscript):
                target = target.value
            if isinstance(target, ast.Attribute):
                dotted = ast.unparse(target)
                head, _, rest = dotted.partition(".")
                if head in imported and "(" not in dotted and "[" not in dotted:
                    yield f"{imported[head]}.{rest}"


def _private_attributes(tree: ast.Module, own: set[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and re.match(r"_[a-z]", node.attr)
            and node.attr not in own | _PUBLIC
        ):
            yield node.attr


def _overrides(file: str) -> Iterator[Coupling]:
    """Members of a library's class that a class of ours has as well; and private ones that it reads of itself."""
    module = importlib.import_module(file.removesuffix(".py").replace("/", ".").removesuffix(".__init__"))
    for _, ours in inspect.getmembers(module, inspect.isclass):
        if ours.__module__ != module.__name__:
            continue
        theirs = [
            base
            for base in ours.__mro__[1:]
            if base.__module__.partition(".")[0] in LIBRARIES and not issubclass(base, BaseException)
        ]
        for name in vars(ours):
            owner = next((base for base in theirs if name in vars(base)), None)
            if owner is not None and not name.startswith("__") and name != "_abc_impl":
                yield Coupling(file, f"{owner.__module__}:{owner.__qualname__}.{name}", "override")
        if theirs:
            for name in sorted(
                set(re.findall(r"self\.(_[a-z]\w*)", inspect.getsource(ours))) - set(vars(ours))
            ):
                owner = next((base for base in theirs if re.search(rf"\b{name}\b", _source(base))), None)
                if owner is not None:
                    yield Coupling(file, f"{owner.__module__}:{owner.__qualname__}.{name}", "private")


@cache
def _source(one: type) -> str:
    try:
        return inspect.getsource(one)
    except (OSError, TypeError):
        return ""
