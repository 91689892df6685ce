"""Help that reads well in plain text, and usage errors as one sentence."""

from __future__ import annotations

from typing import Any

from typer import BadParameter
from typer.core import TyperCommand, TyperGroup

from forethought.cli.terminal import nearest

LOGPROB_KINDS = ("sampling", "raw")


class _QuickParams:
    """Converts plain values itself: typer would import pydantic for it, 110 ms at every start."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, each told how to convert its value."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            wanted = getattr(getattr(param, "type_descriptor", None), "annotation", None)
            if wanted in _CONVERTED or wanted == list[str]:
                converter = _Converter(wanted)
                # an attribute of the instance: a typer that does not ask for it keeps its own way
                param.get_runtime_param = lambda converter=converter: converter
        return params


class _Converter:
    """What typer's ``get_runtime_param`` gives, for the few kinds of value that we have."""

    def __init__(self, wanted: Any) -> None:
        self._wanted = wanted

    def coerce(self, value: Any, *, param: Any, ctx: Any) -> Any:
        if self._wanted == list[str]:
            return [str(item) for item in value or ()]
        if value is None or isinstance(value, self._wanted):
            return value
        try:
            return _CONVERTED[self._wanted][0](value)
        except (ValueError, KeyError):
            noun = _CONVERTED[self._wanted][1]
            raise BadParameter(f"{value!r} is not {noun}", ctx=ctx, param=param) from None


_CONVERTED: dict[Any, tuple[Any, str]] = {
    str: (str, "a text"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    bool: ({"true": True, "1": True, "false": False, "0": False}.__getitem__, "true or false"),
}


class PlainGroup(_QuickParams, TyperGroup):
    """A group of commands that starts quickly."""


class PlainCommand(_QuickParams, TyperCommand):
    """A command whose help groups its options under headings, without rich.

    It also gives ``--logprobs`` its optional value, which typer cannot express: alone it means
    ``sampling``, and only the words ``sampling`` and ``raw`` are taken as its value, so that a
    question after it stays the question.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, after ``--logprobs`` has been given its value."""
        return super().parse_args(ctx, expand_logprobs(args))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write each group of options under its heading (``rich_help_panel``)."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                argument = param.param_type_name == "argument"
                panel = getattr(param, "rich_help_panel", None)
                heading = "Arguments" if argument else (panel or "Options")
                groups.setdefault(heading, []).append(record)
        for heading, rows in groups.items():
            with formatter.section(heading):
                formatter.write_dl(rows)


def expand_logprobs(args: list[str]) -> list[str]:
    """Write a bare ``--logprobs`` as ``--logprobs=sampling``, and ``--logprobs raw`` with ``=``."""
    expanded: list[str] = []
    position = 0
    while position < len(args):
        arg = args[position]
        position += 1
        if arg == "--":
            return [*expanded, arg, *args[position:]]
        if arg == "--logprobs":
            if position < len(args) and args[position] in LOGPROB_KINDS:
                arg = f"--logprobs={args[position]}"
                position += 1
            else:
                arg = "--logprobs=sampling"
        expanded.append(arg)
    return expanded


def help_instead(error: Exception) -> str | None:
    """The help that a command without arguments asks for by raising; None for other errors."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ != "NoArgsIsHelpError" or context is None:
        return None
    return str(context.get_help())


def usage_sentence(error: Exception) -> str | None:
    """The sentence of a usage error of typer, with the nearest option; None for other errors.

    Told by its shape: typer carries its own copy of click, older ones use click itself.
    """
    describe = getattr(error, "format_message", None)
    if describe is None or not hasattr(error, "exit_code"):
        return None
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "forethought"
    option = getattr(error, "option_name", None)
    known = getattr(error, "possibilities", None)
    sentence = " ".join(str(describe()).split())
    if option and isinstance(known, list | tuple | set):
        sentence = f"there is no option {option}{nearest(str(option), sorted(known))}."
    if not sentence.endswith((".", "?", "!")):
        sentence += "."
    return f"{sentence[:1].lower()}{sentence[1:]} See: {path} --help"
