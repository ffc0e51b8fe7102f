"""The pages that people read agree with the code, and the examples are ones that work."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from schemas.job import LEGAL_MOVES, JobState, Move
from worker.sources.documents import find_documents
from worker.sources.jsonl import check_requests
from worker.sources.prompt import Prompt

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_of_moves_in_the_docs_is_the_code_s() -> None:
    page = (ROOT / "docs/states.md").read_text()
    rows = re.findall(r"^\| (\w+) \| (\w+) \| (\w+) \|", page, re.MULTILINE)[1:]
    assert len(rows) == len(set(rows))
    assert {(JobState(a), Move(move)): JobState(b) for a, move, b in rows} == LEGAL_MOVES


def test_every_state_has_a_section_that_names_where_it_leads() -> None:
    page = (ROOT / "docs/states.md").read_text()
    for state in JobState:
        section = page.split(f"\n## {state}\n", 1)[1].split("\n## ", 1)[0]
        for (before, _), after in LEGAL_MOVES.items():
            # A late success has a section of its own.
            if before is state and not (after is JobState.SUCCEEDED and state in ("queued", "waiting")):
                assert f"`{after}`" in section or f"`{after}," in section, (before, after)


@pytest.mark.parametrize(
    "word", ["Job", "Batch", "Claim", "Token", "Lease", "Relay", "Gate", "Spool", "Patience"]
)
def test_the_glossary_says_what_the_word_means(word: str) -> None:
    assert f"\n**{word}** – " in (ROOT / "docs/glossary.md").read_text()


def test_the_licence_is_the_apache_licence_word_for_word() -> None:
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def test_the_example_prompt_reads_every_example_document() -> None:
    prompt = Prompt.load(ROOT / "examples/summarise.md")
    found = find_documents(ROOT / "examples/documents")
    assert (len(found.documents), found.left_out) == (12, [])
    assert any("/" in document.relative for document in found.documents)
    for document in found.documents:
        assert 80 <= len(document.read().split()) <= 400, document.relative
        request = prompt.render(document, "the-only-model")
        assert request.model == "the-only-model"
        assert [message.role for message in request.messages] == ["system", "user"]
        assert document.read().strip() in str(request.messages[1].content)


def test_the_example_requests_are_valid() -> None:
    assert check_requests(ROOT / "examples/requests.jsonl", default_model="the-only-model").count == 5
