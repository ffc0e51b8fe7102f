"""Prompts: what a file may say, what is refused before anything is rendered, and what is rendered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.chat import ChatRequest, encode_request
from worker.errors import InputError
from worker.files.names import FileName
from worker.sources.documents import Document
from worker.sources.prompt import Prompt


def parse(source: str) -> Prompt:
    return Prompt.parse(source, label="p.md")


def render(
    source: str, folder: Path, *, text: str = "Halo", model: str | None = "m", **options: Any
) -> ChatRequest:
    (folder / "in").mkdir(exist_ok=True)
    (folder / "in/a.txt").write_bytes(text.encode())
    return parse(source).render(Document(folder, FileName("in/a.txt")), model, **options)


def sent(request: ChatRequest) -> dict[str, Any]:
    return request.model_dump(exclude_unset=True)


def complaints(source: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        parse(source)
    return caught.value.problems or [str(caught.value)]


def test_a_prompt_without_front_matter_is_one_user_message(tmp_path: Path) -> None:
    request = render("Sum up:\n\n{{ text }}\n", tmp_path)
    assert sent(request) == {"model": "m", "messages": [{"role": "user", "content": "Sum up:\n\nHalo"}]}


def test_all_of_the_front_matter_reaches_the_request(tmp_path: Path) -> None:
    source = """---
model: own
temperature: 0.7
max_tokens: 50
system: "You read {{ name }}."
options:
  seed: 7
  response_format: {type: json_object}
---
{{ text }} {{ stem }} {{ path }}
"""
    assert sent(render(source, tmp_path)) == {
        "model": "own",
        "temperature": 0.7,
        "max_tokens": 50,
        "seed": 7,
        "response_format": {"type": "json_object"},
        "messages": [
            {"role": "system", "content": "You read a.txt."},
            {"role": "user", "content": "Halo a in/a.txt"},
        ],
    }


def test_a_document_with_braces_is_sent_as_it_is(tmp_path: Path) -> None:
    request = render("{{ text }}", tmp_path, text="{{ 7 * 7 }} {% raw %} <b>&")
    assert request.messages[0].content == "{{ 7 * 7 }} {% raw %} <b>&"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip))
def test_any_text_is_sent_as_it_is(tmp_path_factory: Any, text: str) -> None:
    text = text.removeprefix("\ufeff") or "x"
    if text.strip():
        request = render("{{ text }}", tmp_path_factory.mktemp("p"), text=text)
        assert request.messages[0].content == text.removeprefix("\ufeff")
        encode_request(request)


def test_an_unknown_field_is_refused_before_anything_is_rendered() -> None:
    (problem,) = complaints("{{ txet }} {{ text }}")
    assert problem == "p.md: unknown field {{ txet }}; a prompt may use text, name, stem, path"


def test_an_unknown_field_in_a_branch_or_in_the_system_text_is_refused_too() -> None:
    source = "---\nsystem: '{{ who }}'\n---\n{{ text }}{% if false %}{{ nmae }}{% endif %}"
    assert [problem.split(";")[0] for problem in complaints(source)] == [
        "p.md: unknown field {{ nmae }}",
        "p.md: unknown field {{ who }}",
    ]


def test_names_that_the_template_makes_itself_are_no_unknown_fields(tmp_path: Path) -> None:
    source = (
        "{% set lines = text.splitlines() %}{% for line in lines %}{{ loop.index }}:{{ line }} {% endfor %}"
    )
    assert render(source, tmp_path, text="a\nb").messages[0].content == "1:a 2:b "


def test_a_prompt_that_never_uses_the_text_is_refused() -> None:
    assert complaints("Tell me about {{ name }}") == [
        "p.md: {{ text }} is used nowhere: nothing of the documents would be sent"
    ]


@pytest.mark.parametrize("source", ["", " \n", "---\ntemperature: 1\n---\n\n"])
def test_an_empty_prompt_is_refused(source: str) -> None:
    assert complaints(source) == ["p.md: the prompt is empty: it needs text that uses {{ text }}"]


def test_a_syntax_error_is_named_with_its_line_in_the_file() -> None:
    (problem,) = complaints("---\ntemperature: 1\n---\n{{ text }}\n{% if %}\n")
    assert problem.startswith("p.md: line 5: ")


def test_an_unknown_filter_is_named_with_its_line() -> None:
    (problem,) = complaints("\n{{ text | shout }}")
    assert problem == "p.md: line 2: No filter named 'shout'."


def test_a_prompt_is_one_file() -> None:
    assert complaints("{{ text }}{% include 'x' %}") == [
        "p.md: include, import and extends are not for prompts: a prompt is one file"
    ]


def test_every_problem_of_the_front_matter_is_named_at_once() -> None:
    source = """---
modle: x
temperature: warm
max_tokens: 0.5
system: []
options: {messages: [], stop: 2026-01-01, seed: 1}
---
{{ txt }}
"""
    assert complaints(source) == [
        "p.md: unknown key 'modle' in the front matter; known are model, temperature, system, max_tokens, options"
        " (further request fields go under options)",
        "p.md: system: must be text",
        "p.md: temperature: must be a number greater than 0",
        "p.md: max_tokens: must be a whole number, 1 or more",
        "p.md: options.messages: is made from the prompt itself",
        "p.md: options.stop: must be a JSON value (dates need quotes)",
        "p.md: unknown field {{ txt }}; a prompt may use text, name, stem, path",
    ]


@pytest.mark.parametrize(
    ("front", "problem"),
    [
        ("a: [", "front matter, line 3: "),
        ("- a", "front matter: must be"),
        ("seed: 1\nseed: 2", "seed: given twice"),
        ("temperature: true", "temperature: must be"),
        ("temperature: .nan", "temperature: must be"),
        ("temperature: -1", "temperature: must be"),
        ("max_tokens: 5.0", "max_tokens: must be written without"),
        ("options: [1]", "options: must be a mapping"),
        ("options: {model: x}", "options.model: belongs at the top"),
        ("options: {1: x}", "options: must be a mapping"),
        ("model: ''", "model: must be text"),
    ],
)
def test_front_matter_that_cannot_be_used_is_named(front: str, problem: str) -> None:
    assert complaints(f"---\n{front}\n---\n{{{{ text }}}}")[0].startswith(f"p.md: {problem}")


def test_front_matter_that_is_never_closed_is_named() -> None:
    assert complaints("---\nmodel: x\n{{ text }}") == [
        "p.md: the front matter that line 1 opens is never closed by ---"
    ]


def test_a_line_of_dashes_further_down_is_text(tmp_path: Path) -> None:
    assert render("Read:\n---\n{{ text }}\n---", tmp_path).messages[0].content == "Read:\n---\nHalo\n---"


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("text.author", "'str object' has no attribute 'author'"),
        ("text / 2", "TypeError"),
        ("1 / 0", "ZeroDivisionError"),
        ("range(10 ** 9)", "OverflowError"),
        ("text.__class__", "access to attribute '__class__' of 'str' object is unsafe."),
    ],
)
def test_an_expression_that_fails_names_prompt_line_and_document(
    tmp_path: Path, expression: str, words: str
) -> None:
    with pytest.raises(InputError) as caught:
        render(f"---\ntemperature: 1\n---\n{{{{ text }}}}\n{{{{ {expression} }}}}", tmp_path)
    assert str(caught.value) == f"p.md: line 5: {words} (for in/a.txt)"


def test_no_error_repeats_the_document(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        render("{{ text.encode('ascii') }}", tmp_path, text="geheim €")
    assert "geheim" not in str(caught.value)


def test_a_document_for_which_nothing_is_left_to_send_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing is left to send for in/a\.txt"):
        render("{% if 'x' in text %}{{ text }}{% endif %}", tmp_path)


def test_a_prompt_that_could_never_be_valid_is_told_before_any_document() -> None:
    with pytest.raises(InputError, match="model: is missing"):
        parse("{{ text }}").check(None)
    cold = parse("---\ntemperature: 0\noptions: {stream: true}\n---\n{{ text }}")
    with pytest.raises(InputError) as caught:
        cold.check("m")
    assert [problem.split(":")[1] for problem in caught.value.problems] == [" temperature", " stream"]
    parse("---\ntemperature: 0\n---\n{{ text }}").check("m", allow_zero_temperature=True)


def test_rendering_twice_gives_the_same_request(tmp_path: Path) -> None:
    source = "{{ text }} {{ name }}"
    assert encode_request(render(source, tmp_path)) == encode_request(render(source, tmp_path))
    assert complaints("{{ text }}{{ lipsum() }}")[0].startswith("p.md: unknown field {{ lipsum }}")
    assert complaints("{{ text }}{{ [1, 2] | random }}") == ["p.md: line 1: No filter named 'random'."]


def test_the_digest_follows_every_character_of_the_file() -> None:
    one, same, other = parse("{{ text }}"), parse("{{ text }}"), parse("{{ text }} ")
    assert one.digest == same.digest != other.digest
    assert len(one.digest) == 64


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such prompt"):
        Prompt.load(tmp_path / "no.md")
    with pytest.raises(InputError, match="cannot be read"):
        Prompt.load(tmp_path)
    (tmp_path / "latin.md").write_bytes(b"caf\xe9 {{ text }}")
    with pytest.raises(InputError, match=r"is not UTF-8 text \(byte 3\)"):
        Prompt.load(tmp_path / "latin.md")


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "p.md").write_bytes(b"\xef\xbb\xbf---\r\ntemperature: 0.5\r\n---\r\n{{ text }}\r\n")
    prompt = Prompt.load(tmp_path / "p.md")
    assert prompt.front.temperature == 0.5
