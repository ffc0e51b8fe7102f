"""The command line opens no transaction, and what it calls for that prints nothing: read from the source of `worker`.

The contract of imports knows modules, not names. A command needs the types of what it prints, which lie beside the
functions that fetch them. So this looks at each name.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from worker.cli.advice import ADVICE, advise
from worker.errors import InputError
from worker.operations import errors

WORKER = Path(__file__).resolve().parents[2] / "worker"
COMMANDS = sorted((WORKER / "cli").glob("*.py"))
OPERATIONS = sorted((WORKER / "operations").glob("*.py"))
STORAGE = sorted((WORKER / "storage").glob("*.py"))
# What gives a face its ledger, which it hands on.
OPENERS = {"open_ledger", "prepare_ledger"}
TRANSACTIONS = {"read", "write", "run"}
MAP = (WORKER.parent / "docs/architecture.md").read_text(encoding="utf-8")


def find_storage(source: str) -> Iterator[str]:
    """What a module takes from the storage that is no value: a function, a module, or a transaction."""
    tree = ast.parse(source)
    ledgers = {"ledger"}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (one.name for one in names if one.name.startswith("worker.storage"))
            case ast.ImportFrom(module=str(module), names=names) if module.startswith("worker.storage"):
                for one in names:
                    if module == "worker.storage" or one.name == "Transaction":
                        yield f"{module}.{one.name}"
                    elif one.name not in OPENERS:
                        found = getattr(import_module(module), one.name)
                        if callable(found) and not isinstance(found, type):
                            yield f"{module}.{one.name}"
            case ast.ImportFrom(module="worker", names=names):
                yield from (f"worker.{one.name}" for one in names if one.name == "storage")
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=ast.Name(id=opener))):
                if opener in OPENERS:
                    ledgers.add(name)
            case _:
                pass
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name, value=value) if name in TRANSACTIONS:
                text = ast.unparse(value)
                last = re.split(r"\W", re.sub(r"\(.*\)", "", text))[-1].lstrip("_")
                if last in ledgers or last in OPENERS or last.endswith("ledger"):
                    yield f"{text}.{name}"
            case _:
                pass


def find_terminal(source: str) -> Iterator[str]:
    """How a module speaks to a person, or ends the process."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(id="print" | "input" | "exit" | "quit" as name)):
                yield name
            case ast.Attribute(value=ast.Name(id="sys"), attr="stdout" | "stderr" | "stdin" | "exit" as name):
                yield f"sys.{name}"
            case ast.Attribute(value=ast.Name(id="os"), attr="_exit" | "isatty" as name):
                yield f"os.{name}"
            case ast.Name(id="SystemExit" as name):
                yield name
            case _:
                pass


@pytest.mark.parametrize("module", COMMANDS, ids=lambda path: path.stem)
def test_a_command_opens_no_transaction_and_takes_only_types_from_the_storage(module: Path) -> None:
    assert list(find_storage(module.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("module", OPERATIONS, ids=lambda path: path.stem)
def test_an_operation_prints_asks_and_ends_nothing(module: Path) -> None:
    assert list(find_terminal(module.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "module", [*OPERATIONS, *STORAGE], ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_no_option_of_the_command_line_is_named_below_it(module: Path) -> None:
    """A gateway shares the use cases and has no options: `worker/cli/advice.py` names them."""
    assert re.findall(r"(?<![\w-])--[a-z][a-z-]*", module.read_text(encoding="utf-8")) == []


def test_each_refusal_that_an_option_helps_out_of_has_its_words_and_the_option_is_there() -> None:
    refusals = {one for one in vars(errors).values() if getattr(one, "__module__", None) == errors.__name__}
    assert refusals == set(ADVICE)
    options = re.findall(r"--[a-z-]+", " ".join(ADVICE.values()))
    sources = "".join(module.read_text(encoding="utf-8") for module in COMMANDS if module.stem != "advice")
    assert len(options) == len(ADVICE)
    assert all(f'"{one}"' in sources or f"{one[2:]}: Annotated" in sources for one in options), options
    assert (
        advise(errors.Unfinished("b is not done"))
        == "b is not done; --even-unfinished removes what has ended of it"
    )
    assert advise(InputError("odd")) == "odd"


@pytest.mark.parametrize(
    "module", [one for one in OPERATIONS if one.stem != "__init__"], ids=lambda path: path.stem
)
def test_each_operation_is_in_the_table_of_use_cases(module: Path) -> None:
    table = MAP.split("\n## Use cases\n", 1)[1].split("\n## ", 1)[0]
    assert f"`worker/operations/{module.name}`" in table


@pytest.mark.parametrize(
    "source",
    [
        "with ledger.read() as connection:\n    pass",
        "found = self._ledger.run(work)",
        "with open_ledger(settings, pool_size=1).read() as connection:\n    pass",
        "opened = prepare_ledger(settings)\nopened.write()",
        "repeat = ledger.run",
        "from worker.storage.batches import fetch_batch",
        "from worker.storage.engine import Transaction",
        "from worker.storage import pauses",
        "from worker import storage",
        "import worker.storage.batches as kept",
    ],
)
def test_a_transaction_would_be_found(source: str) -> None:
    assert list(find_storage(source))


@pytest.mark.parametrize(
    "source",
    [
        "from worker.storage.batches import Batch\nfrom worker.storage.migrating import prepare_ledger",
        "from worker.storage.engine import Ledger\nledger = prepare_ledger(settings)\nledger.dispose()",
        "file.read()",
        "asyncio.run(supervisor.run())",
    ],
)
def test_what_opens_none_is_not_meant(source: str) -> None:
    assert not list(find_storage(source))


@pytest.mark.parametrize(
    "source",
    ["print(1)", "input('?')", "sys.stderr.write('x')", "sys.exit(1)", "raise SystemExit(1)", "os._exit(1)"],
)
def test_what_speaks_to_a_terminal_would_be_found(source: str) -> None:
    assert list(find_terminal(source))
