"""Renders a chat template with jinja2. Run by ``template_process`` as a script.

The script (``python -I template_worker.py [FOLDER...]``, folders to import jinja2 from) answers
JSON lines on stdin, ``{"source", "variables", "max_chars", "max_seconds"}``, with JSON lines on
stdout, ``{"text"}`` or ``{"error", "message"}``. Its memory is capped; its parent kills it when a
rendering takes too long. The sandbox stops escapes but neither CPU bombs nor memory bombs, hence
the process. It imports nothing of forethought: ``-I`` hides where that lies.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from jinja2 import Template

EXTRA_MEMORY = 256 * 1024 * 1024
"""Bytes a rendering may take on top of what the worker needs itself."""


class TemplateProblem(Exception):
    """A rendering failed. ``kind``: syntax, security, raised (by the template itself), undefined,
    memory, output (too long), other."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class _Raised(Exception):
    pass


def render(source: str, variables: Mapping[str, object], max_chars: int) -> str:
    """``source`` rendered as transformers renders chat templates. Raises TemplateProblem."""
    from jinja2.exceptions import (
        SecurityError,
        TemplateError,
        TemplateSyntaxError,
        UndefinedError,
    )

    try:
        parts: list[str] = []
        length = 0
        for part in _compile(source).generate(**variables):
            length += len(part)
            if length > max_chars:
                raise TemplateProblem("output", f"it writes more than {max_chars} characters")
            parts.append(part)
        return "".join(parts)
    except _Raised as error:
        raise TemplateProblem("raised", str(error)) from None
    except SecurityError as error:
        raise TemplateProblem("security", str(error)) from None
    except TemplateSyntaxError as error:
        raise TemplateProblem("syntax", f"line {error.lineno}: {error.message}") from None
    except UndefinedError as error:
        raise TemplateProblem("undefined", str(error)) from None
    except MemoryError:
        raise TemplateProblem("memory", "it needs too much memory") from None
    except RecursionError:
        raise TemplateProblem("other", "it calls itself too often") from None
    except TemplateError as error:
        raise TemplateProblem("other", str(error)) from None
    except TemplateProblem:
        raise
    except Exception as error:  # a template can make any filter or operator fail
        raise TemplateProblem("other", f"{type(error).__name__}: {error}") from None


@lru_cache(maxsize=8)
def _compile(source: str) -> Template:
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}``: transformers marks the assistant's tokens with it; no text."""

        tags = {"generation"}  # noqa: RUF012 (the name and type that jinja2 asks for)

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Sandbox(ImmutableSandboxedEnvironment):
        def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
            # jinja2 waits until the value is used; a template that tries is not to go on.
            raise SecurityError(f"{attribute!r} of a {type(obj).__name__}")

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    # transformers always passes these two, and templates ask `tools is not none`. Constants here.
    environment.globals["tools"] = None
    environment.globals["documents"] = None
    return environment.from_string(source)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    # jinja2's own escapes for HTML, which no model has seen in training.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise_exception(message: object) -> NoReturn:
    raise _Raised(str(message))


def _strftime_now(form: str) -> str:
    from datetime import datetime

    return datetime.now().strftime(form)


def _limit() -> None:
    """Cap the memory of this process; where the system cannot, the wall clock has to do."""
    try:
        import resource
    except ImportError:
        return
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123
            used = int(statm.read().split()[0]) * resource.getpagesize()
    except OSError:
        used = 1024 * 1024 * 1024
    limits = {resource.RLIMIT_AS: used + EXTRA_MEMORY, resource.RLIMIT_FSIZE: 0}
    for name, value in limits.items():
        try:
            resource.setrlimit(name, (value, value))
        except (OSError, ValueError):
            continue


def _alarm(seconds: int) -> None:
    """Have the system end this process, should the parent be gone and nobody else do it."""
    try:
        from signal import alarm
    except ImportError:
        return
    alarm(seconds)


def _answer(request: dict[str, Any]) -> dict[str, str]:
    try:
        text = render(request["source"], request["variables"], request["max_chars"])
        return {"text": text}
    except TemplateProblem as problem:
        return {"error": problem.kind, "message": str(problem)[:500]}
    except MemoryError:
        return {"error": "memory", "message": "it needs too much memory"}


def main() -> None:
    """Answer requests until stdin ends."""
    sys.path[:0] = sys.argv[1:]
    sys.set_int_max_str_digits(4300)
    # Whatever jinja2 imports lazily has to be there before the limits are.
    _compile("{{ messages | tojson }}{{ raise_exception }}{{ ''.x }}")
    _answer({"source": "{{ nothing.x }}", "variables": {}, "max_chars": 1})
    _limit()
    sys.stdout.write(json.dumps({"ready": True}) + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        request = json.loads(line)
        _alarm(int(request["max_seconds"]) + 5)
        answer = json.dumps(_answer(request))
        _alarm(0)
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
