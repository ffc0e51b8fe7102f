"""A prompt: a template that turns each document into one chat request.

The file is text: optional front matter (model, temperature, system, max_tokens, options), then a Jinja
template that may use text, name (`a.txt`), stem (`a`) and path (`folder/a.txt`) of the document.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, meta
from jinja2.sandbox import SandboxedEnvironment

from schemas.chat import ChatRequest, InvalidRequest, parse_request
from worker.errors import InputError
from worker.files.names import FileName, as_text
from worker.sources.documents import Document
from worker.sources.frontmatter import FrontMatter, parse_front_matter, split_front_matter
from worker.sources.pipes import name_input, read_input
from worker.sources.problems import input_error, why

FIELDS = ("text", "name", "stem", "path")
_LONGEST_WORDS = 120
# Exceptions that an expression in a template can raise: {{ 1/0 }}, {{ text + 1 }}, {{ range(10**9) }} …
_EXPRESSION_ERRORS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that is ready to render. `label`: its path, or plain words for a pipe. `source`: the file's text."""

    label: str
    source: str
    front: FrontMatter
    _body: Template
    _body_line: int
    _system: Template | None

    @classmethod
    def load(cls, path: Path) -> Self:
        """The prompt of this file. Raises an InputError that names every problem of it at once."""
        label = as_text(path) if as_text(FileName(path.name)) == name_input(path) else name_input(path)
        return cls.parse(_read(path, label), label=label)

    @classmethod
    def parse(cls, source: str, *, label: str) -> Self:
        """The prompt of this text. `label`: its name in messages. Raises InputError."""
        parts = split_front_matter(source)
        if not parts.is_closed:
            raise input_error(label, [f"{label}: the front matter that line 1 opens is never closed by ---"])
        front, problems = parse_front_matter(parts.front or "")
        environment = _environment()
        used = set[str]()
        body = _compile(environment, parts.body, "line ", parts.body_line, used, problems)
        system = None
        if front.system is not None:
            system = _compile(environment, front.system, "system: line ", 1, used, problems)
        if not parts.body.strip():
            problems.append("the prompt is empty: it needs text that uses {{ text }}")
        elif body is not None and "text" not in used and not problems:
            problems.append("{{ text }} is used nowhere: nothing of the documents would be sent")
        if problems or body is None:
            raise input_error(label, [f"{label}: {problem}" for problem in problems])
        return cls(label, source, front, body, parts.body_line, system)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the file's text. It identifies the prompt."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def check(self, default_model: str | None, allow_zero_temperature: bool = False) -> None:
        """Raises InputError if no request of this prompt can be valid, with any document."""
        try:
            self._request("text", "system", default_model, allow_zero_temperature)
        except InvalidRequest as exc:
            raise input_error(self.label, [f"{self.label}: {error}" for error in exc.errors]) from None

    def render(
        self, document: Document, default_model: str | None, allow_zero_temperature: bool = False
    ) -> ChatRequest:
        """The request for one document, which is read now. Raises an InputError that names prompt and document."""
        values = {
            "text": document.read(),
            "name": document.name,
            "stem": document.stem,
            "path": document.relative,
        }
        user = self._fill(self._body, "line", self._body_line, values, document)
        if not user.strip():
            raise input_error(self.label, [f"{self.label}: nothing is left to send for {document.relative}"])
        system = ""
        if self._system is not None:
            system = self._fill(self._system, "system: line", 1, values, document)
        try:
            return self._request(user, system, default_model, allow_zero_temperature)
        except InvalidRequest as exc:
            raise input_error(
                self.label, [f"{self.label}: {error} (for {document.relative})" for error in exc.errors]
            ) from None

    def _request(
        self, user: str, system: str, default_model: str | None, allow_zero_temperature: bool
    ) -> ChatRequest:
        messages = [{"role": "user", "content": user}]
        if self._system is not None:
            messages.insert(0, {"role": "system", "content": system})
        data: dict[str, Any] = {**self.front.request_fields(), "messages": messages}
        return parse_request(data, allow_zero_temperature=allow_zero_temperature, default_model=default_model)

    def _fill(
        self, template: Template, place: str, first_line: int, values: dict[str, str], document: Document
    ) -> str:
        try:
            return template.render(values)
        except TemplateError as exc:
            words, traceback = (exc.message or type(exc).__name__)[:_LONGEST_WORDS], exc.__traceback__
        except _EXPRESSION_ERRORS as exc:
            # The exception's text may quote the document. antrean's errors never do.
            words, traceback = type(exc).__name__, exc.__traceback__
        line = _template_line(traceback) + first_line - 1
        raise input_error(self.label, [f"{self.label}: {place} {line}: {words} (for {document.relative})"])


def _environment() -> SandboxedEnvironment:
    environment = SandboxedEnvironment(
        undefined=StrictUndefined, autoescape=False, keep_trailing_newline=False
    )
    # The same document must give the same request each time: a second run finds its jobs by it.
    environment.globals.pop("lipsum")
    environment.filters.pop("random")
    return environment


def _compile(
    environment: SandboxedEnvironment,
    source: str,
    place: str,
    first_line: int,
    used: set[str],
    problems: list[str],
) -> Template | None:
    """The template, or None with a problem. Adds the fields that it uses to `used`, and its problems to `problems`."""
    try:
        tree = environment.parse(source)
        names = meta.find_undeclared_variables(tree)
        template = environment.from_string(source)
    except TemplateSyntaxError as exc:
        problems.append(f"{place}{exc.lineno + first_line - 1}: {exc.message}")
        return None
    except RecursionError:
        problems.append(f"{place}{first_line}: nested too deeply")
        return None
    if any(True for _ in meta.find_referenced_templates(tree)):
        problems.append("include, import and extends are not for prompts: a prompt is one file")
    problems += [
        f"unknown field {{{{ {name} }}}}; a prompt may use {', '.join(FIELDS)}"
        for name in sorted(names.difference(FIELDS))
    ]
    used.update(names)
    return template


def _template_line(traceback: TracebackType | None) -> int:
    """The template line, 1-based, of the innermost frame. Jinja rewrites tracebacks to template lines."""
    line = 1
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == "<template>":
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


def _read(path: Path, label: str) -> str:
    try:
        raw = read_input(path)
    except FileNotFoundError:
        raise InputError(f"No such prompt: {path}") from None
    except OSError as exc:
        raise input_error(label, [f"{label}: cannot be read ({why(exc)})"]) from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        problem = f"{label}: is not UTF-8 text (byte {exc.start:,}); save it as UTF-8"
        raise input_error(label, [problem]) from None
