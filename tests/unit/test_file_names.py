"""A name is the same text in every locale, and opens the same file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT
from worker.files.names import FileName, as_file_name, as_text, is_utf8, rejoined

LOCALES = [{"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONUTF8": "1"}]


def python(script: str, folder: Path, locale: dict[str, str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), **locale},
        capture_output=True,
        timeout=30,
        check=True,
    )
    return list(json.loads(done.stdout))


@pytest.mark.parametrize("name", ["plain.txt", "é.txt", "資料/ü.txt", os.fsdecode(b"caf\xe9.txt")])
def test_a_name_comes_back_from_its_text(name: str) -> None:
    assert as_file_name(as_text(FileName(name))) == name
    assert as_text(Path(name)) == as_text(FileName(name))


def test_a_byte_that_is_not_utf8_is_no_text() -> None:
    assert is_utf8(as_text(FileName("é.txt")))
    assert not is_utf8(as_text(FileName(os.fsdecode(b"caf\xe9.txt"))))


@pytest.fixture(params=["ASCII", "UTF-8", "Latin-1"])
def locale(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    if request.param != "Latin-1":
        return LOCALES[request.param == "UTF-8"]
    made = tmp_path_factory.mktemp("locales") / "en_US.ISO-8859-1"
    if shutil.which("localedef") is None:
        pytest.skip("no localedef here")
    done = subprocess.run(
        ["localedef", "-f", "ISO-8859-1", "-i", "en_US", str(made)], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("no sources of locales here")
    return {"PYTHONUTF8": "0", "LOCPATH": str(made.parent), "LC_ALL": made.name}


def test_the_documents_of_a_folder_have_the_same_names_in_the_same_order_in_every_locale(
    tmp_path: Path, locale: dict[str, str]
) -> None:
    for name in ("z.txt", "é.txt", "ü/資料.txt", "\U0001f600.txt", "\uff00.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(name, encoding="utf-8")
    script = """
import json
from pathlib import Path
from worker.sources.documents import find_documents, source_key
here = Path.cwd()
found = find_documents(Path("in")).documents
assert all(one.read() == one.relative for one in found)
print(json.dumps([source_key(one, here) for one in found]))
"""
    names = ["in/z.txt", "in/é.txt", "in/ü/資料.txt", "in/\uff00.txt", "in/\U0001f600.txt"]
    assert python(script, tmp_path, locale) == names


def test_settings_mean_the_same_in_every_locale_wherever_they_stand(
    tmp_path: Path, locale: dict[str, str]
) -> None:
    for folder in ("höme", "other", "schlüssel"):
        (tmp_path / folder).mkdir()
    (tmp_path / "schlüssel" / "key").write_text("secret\n")
    (tmp_path / ".env").write_text(
        "ANTREAN_HOME=höme\nANTREAN_API_KEY_FILE=schlüssel/key\nANTREAN_ENDPOINT_NAME=${WHO}-größer\n",
        encoding="utf-8",
    )
    script = """
import json, os
from worker.settings import load_settings
s = load_settings()
assert s.api_key_file.read_text() == "secret\\n"
ledger = s.ledger_address
open(ledger, "w").close()
print(json.dumps([s.endpoint, s.model or "", *sorted(os.fsencode(p).decode() for p in os.listdir(s.home))]))
"""
    given = {"WHO": "ö", "ANTREAN_MODEL": "modèle"}
    assert python(script, tmp_path, locale | given) == ["ö-größer", "modèle", "antrean.db"]
    given["ANTREAN_DATABASE_URL"] = "sqlite:///höme/lédger.db"
    assert python(script, tmp_path, locale | given)[2:] == ["antrean.db", "lédger.db"]


def test_a_brokers_socket_is_found_in_every_locale(tmp_path: Path, locale: dict[str, str]) -> None:
    script = """
import json, socket
from worker.broker.client import broker_address, open_client
from worker.settings import load_settings
with socket.socket(socket.AF_UNIX) as server:
    server.bind(b"s\\xc3\\xb6cket")
    server.listen()
    server.settimeout(10)
    connection = open_client(broker_address(load_settings())).connection_pool.make_connection()
    connection._connect().close()  # it raises where the path cannot be said, or leads nowhere
print(json.dumps(["reached"]))
"""
    given = {"ANTREAN_BROKER_URL": f"redis+socket://{tmp_path}/söcket"}
    assert python(script, tmp_path, locale | given) == ["reached"]


def test_a_sentence_shows_the_characters_of_a_name_that_came_in_bytes() -> None:
    under_ascii = "é".encode().decode("ascii", "surrogateescape")
    assert rejoined(f"No such file: {under_ascii}.txt") == "No such file: é.txt"
    for kept in ("plain", "é", "half \ud83d of a pair", "caf\udce9"):
        assert rejoined(kept) == kept
