"""Settings: one table, four places, in this order: flag, variable, ``config.toml``, default.

The table is the only list of settings there is. The documentation, the check of unknown keys and
unknown variables, and the bounds of every value come from it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from forethought.errors import UserError
from forethought.paths import config_file

Kind = Literal["text", "integer", "number", "switch"]
Value = str | int | float | bool | None

PREFIX = "FORETHOUGHT_"

LARGEST = 2**31 - 1
"""The largest number that llama.cpp and most servers can take where tokens or layers are counted.
"""
MAX_SEED = 2**32 - 2
"""The largest seed that every engine takes."""
MAX_THREADS = 512


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. ``flag`` is None where no option sets it, ``in_file`` False where the file may
    not (what decides where the file is). Bounds are inclusive unless ``above`` is given. A text
    with a ``pattern`` (a regular expression) says in ``placeholder`` what that looks like.

    Secrets (``secret``) are never printed.
    """

    name: str
    kind: Kind
    help: str
    default: Value = None
    flag: str | None = None
    in_file: bool = True
    choices: tuple[str, ...] = ()
    pattern: str = ""
    low: float | None = None
    above: float | None = None
    high: float | None = None
    secret: bool = False
    placeholder: str = ""

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return PREFIX + self.name.upper()


DEFAULT_MODEL = "nano"

TABLE: tuple[Setting, ...] = (
    Setting(
        "model",
        "text",
        "The model: a catalogue name, a GGUF file, a Hugging Face folder, hf://org/repo[:file], "
        "or a server (http://127.0.0.1:1234/v1#model).",
        default=DEFAULT_MODEL,
        flag="--model",
    ),
    Setting(
        "engine",
        "text",
        "What computes: auto takes llama.cpp for GGUF, torch for a Hugging Face folder, "
        "remote for a URL.",
        default="auto",
        flag="--engine",
        choices=("auto", "llama.cpp", "torch", "remote"),
    ),
    Setting(
        "context",
        "integer",
        "Context length in tokens (default: what the model and the memory allow).",
        flag="--ctx",
        low=1,
        high=LARGEST,
    ),
    Setting(
        "threads",
        "integer",
        "CPU threads (default: measured once, then remembered; on the torch engine one a core).",
        flag="--threads",
        low=1,
        high=MAX_THREADS,
    ),
    Setting(
        "gpu_layers",
        "integer",
        "Layers to keep on the GPU (llama.cpp).",
        flag="--gpu-layers",
        low=0,
        high=LARGEST,
    ),
    Setting(
        "device",
        "text",
        "Where the torch engine computes (default: CUDA where there is a GPU, else the CPU).",
        flag="--device",
        pattern=r"cpu|cuda(:\d{1,4})?",
        placeholder="cpu, cuda, cuda:N",
    ),
    Setting(
        "dtype",
        "text",
        "What the torch engine computes in (default: float32 on a CPU, bfloat16 on CUDA).",
        flag="--dtype",
        choices=("float32", "bfloat16", "int8"),
    ),
    Setting(
        "speculate",
        "switch",
        "The model's MTP module drafts and the model checks: the same greedy text, one sample "
        "(torch).",
        default=False,
        flag="--speculate",
    ),
    Setting(
        "temperature",
        "number",
        "Sampling temperature; 0 is greedy (default: the model's own, else 0.6).",
        flag="--temperature",
        low=0,
    ),
    Setting(
        "top_p",
        "number",
        "Keep the likeliest tokens up to this probability (default: the model's own, else 0.95).",
        flag="--top-p",
        above=0,
        high=1,
    ),
    Setting(
        "top_k",
        "integer",
        "Keep the k likeliest tokens; 0 is off.",
        flag="--top-k",
        low=0,
        high=LARGEST,
    ),
    Setting(
        "min_p",
        "number",
        "Drop tokens below this fraction of the likeliest one; 0 is off.",
        flag="--min-p",
        low=0,
        high=1,
    ),
    Setting(
        "max_tokens",
        "integer",
        "Tokens of thought and answer together (default: fills the context; some of it is kept "
        "for the answer).",
        flag="--max-tokens",
        low=1,
        high=LARGEST,
    ),
    Setting(
        "max_thought",
        "integer",
        "Close the thought at this many tokens and answer.",
        flag="--max-thought",
        low=0,
        high=LARGEST,
    ),
    Setting(
        "min_thought",
        "integer",
        'Before this many tokens of thought, an early end becomes "Wait,".',
        flag="--min-thought",
        low=0,
        high=LARGEST,
    ),
    Setting("system", "text", "A system prompt (default: none, as R1 wants).", flag="--system"),
    Setting(
        "template",
        "text",
        "How the conversation is written down: the model's own template, R1's, R1-Zero's, or bare "
        "(the text as it is).",
        default="model",
        flag="--template",
        choices=("model", "r1", "r1-zero", "bare"),
    ),
    Setting(
        "hide_thought", "switch", "Do not show the thought.", default=False, flag="--hide-thought"
    ),
    Setting(
        "reproducible",
        "switch",
        "The same request gives the same tokens whatever else runs; slower.",
        default=False,
        flag="--reproducible",
    ),
    Setting("offline", "switch", "Never open a connection to the network.", default=False),
    Setting(
        "api_key",
        "text",
        "Key for a server (sent as a bearer token, to that server only).",
        secret=True,
    ),
    Setting("hub", "text", "Address of the model hub, or of a mirror.", placeholder="URL"),
    Setting("models", "text", "Folder of the models.", placeholder="FOLDER"),
    Setting(
        "home",
        "text",
        "One folder for everything: configuration, cache, models.",
        in_file=False,
        placeholder="FOLDER",
    ),
    Setting(
        "debug",
        "switch",
        "Show the traceback of an unexpected error.",
        default=False,
        in_file=False,
    ),
)

BY_NAME: dict[str, Setting] = {setting.name: setting for setting in TABLE}

# Variables of the tests (FORETHOUGHT_TEST_MODEL): nobody is warned about them.
_TEST_PREFIX = PREFIX + "TEST_"


def about(name: str) -> str:
    """The help text of a setting, for the option that sets it."""
    return BY_NAME[name].help


class Settings:
    """The value of every setting, and where it came from."""

    def __init__(self, values: Mapping[str, Value], sources: Mapping[str, str]) -> None:
        self._values = dict(values)
        self._sources = dict(sources)

    def text(self, name: str) -> str | None:
        """A text setting, None where it is not set."""
        value = self._values[name]
        return None if value is None else str(value)

    def integer(self, name: str) -> int | None:
        """An integer setting, None where it is not set."""
        value = self._values[name]
        return value if isinstance(value, int) else None

    def number(self, name: str) -> float | None:
        """A number setting, None where it is not set."""
        value = self._values[name]
        return None if value is None else float(value)

    def switch(self, name: str) -> bool:
        """A switch."""
        return bool(self._values[name])

    def is_off(self, name: str) -> bool:
        """Whether the value stands for nothing: not set, or a switch that is off."""
        return self._values[name] is None or self._values[name] is False

    def without(self, names: Iterable[str]) -> Settings:
        """These settings, with those of ``names`` as if nobody had set them."""
        mine = {name: BY_NAME[name].default for name in names}
        return Settings(self._values | mine, self._sources | dict.fromkeys(mine, "default"))

    def source(self, name: str) -> str:
        """Where the value came from: ``--flag``, a variable's name, the file, or ``default``."""
        return self._sources[name]


def load_settings(
    flags: Mapping[str, Value] | None = None,
    environ: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Settings:
    """Merge flags, variables and the file over the defaults.

    ``flags`` holds what the command line gave, None where it gave nothing. Raises UserError naming
    the place of the first wrong key or value. Unknown variables are only warned about (stderr).
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Value] = {setting.name: setting.default for setting in TABLE}
    sources = dict.fromkeys(values, "default")
    path = config_file() if file is None else file
    for name, value in _read_file(path).items():
        values[name], sources[name] = value, str(path)
    for setting in TABLE:
        raw = environ.get(setting.variable, "")
        if raw:
            values[setting.name] = _from_text(setting, raw, setting.variable)
            sources[setting.name] = setting.variable
    for name, value in (flags or {}).items():
        if value is not None:
            setting = BY_NAME[name]
            values[name] = _checked(setting, value, setting.flag or name)
            sources[name] = setting.flag or name
    settings = Settings(values, sources)
    _check_together(settings)
    return settings


def export_to_environment(settings: Settings) -> None:
    """Let the rooms below see what only the file says: they read the variables, not our file."""
    for name in ("models", "hub", "offline"):
        variable = BY_NAME[name].variable
        value = "1" * settings.switch(name) if name == "offline" else settings.text(name)
        if value and settings.source(name) != "default":
            os.environ[variable] = value


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """A warning for each ``FORETHOUGHT_*`` variable that nothing reads."""
    from forethought.cli.terminal import nearest

    known = [setting.variable for setting in TABLE]
    return [
        f"the variable {name} is not one of ours and does nothing{nearest(name, known)}"
        for name in sorted(environ)
        if name.startswith(PREFIX) and name not in known and not name.startswith(_TEST_PREFIX)
    ]


def warn_unknown_variables() -> None:
    """Print :func:`unknown_variables` on stderr."""
    # the check costs nothing unless there is a name to complain about
    if any(name.startswith(PREFIX) for name in os.environ):
        from forethought.cli.terminal import note

        for sentence in unknown_variables(os.environ):
            note(f"forethought: {sentence}")


def variables_table() -> list[dict[str, str]]:
    """Every setting as the documentation shows it: variable, key, flag, kind, default, help."""
    return [
        {
            "variable": setting.variable,
            "key": setting.name if setting.in_file else "",
            "flag": setting.flag or "",
            "kind": " | ".join(setting.choices)
            or (setting.placeholder.replace(", ", " | ") if setting.pattern else setting.kind),
            "default": "" if setting.default is None else str(setting.default).lower(),
            "help": setting.help,
        }
        for setting in TABLE
    ]


def _read_file(path: Path) -> dict[str, Value]:
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    import tomllib

    from forethought.cli.terminal import nearest

    try:
        table = tomllib.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}).") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not TOML: {error}.") from error
    known = [setting.name for setting in TABLE if setting.in_file]
    values: dict[str, Value] = {}
    for key, value in table.items():
        if key not in known:
            hint = nearest(key, known) or f". Known keys: {', '.join(known)}"
            raise UserError(f"{path}: unknown key {key!r}{hint}.")
        setting = BY_NAME[key]
        values[key] = _checked(setting, value, f"{path}: {key}")
        if setting.secret:
            _require_private(path, key)
    return values


def _require_private(path: Path, key: str) -> None:
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise UserError(f"{path} holds {key} and other users can read it. Run: chmod 600 {path}")


_SWITCH_WORDS = {
    "1": True, "true": True, "yes": True, "on": True,
    "0": False, "false": False, "no": False, "off": False,
}  # fmt: skip


def _from_text(setting: Setting, raw: str, where: str) -> Value:
    value: Value = raw
    try:
        if setting.kind == "integer":
            value = int(raw)
        elif setting.kind == "number":
            value = float(raw)
        elif setting.kind == "switch":
            value = _SWITCH_WORDS[raw.strip().lower()]
    except (ValueError, KeyError):
        raise UserError(f"{where} must be {_wanted(setting)}, not {raw!r}.") from None
    return _checked(setting, value, where)


def _checked(setting: Setting, value: object, where: str) -> Value:
    kinds: dict[Kind, tuple[type, ...]] = {
        "text": (str,),
        "integer": (int,),
        "number": (int, float),
        "switch": (bool,),
    }
    fits = isinstance(value, kinds[setting.kind])
    if isinstance(value, bool) and setting.kind != "switch":
        fits = False
    if fits and setting.choices:
        fits = value in setting.choices
    if fits and setting.pattern:
        import re

        fits = re.fullmatch(setting.pattern, str(value), re.ASCII) is not None
    if fits and isinstance(value, int | float) and not isinstance(value, bool):
        fits = (
            # NaN compares false with everything, so each bound is asked the positive way round
            (setting.low is None or value >= setting.low)
            and (setting.above is None or value > setting.above)
            and (setting.high is None or value <= setting.high)
            and value not in (float("inf"), float("-inf"))
        )
    if not fits:
        from forethought.cli.terminal import nearest

        hint = nearest(str(value), list(setting.choices)) if setting.choices else ""
        shown = value if isinstance(value, int | float) else repr(value)
        raise UserError(f"{where} must be {_wanted(setting)}, not {shown}{hint}.")
    return value  # type: ignore[return-value]  # its type was just checked


def _wanted(setting: Setting) -> str:
    if setting.choices:
        return "one of " + ", ".join(setting.choices)
    if setting.pattern:
        return "one of " + setting.placeholder
    if setting.kind == "switch":
        return "true or false"
    if setting.kind == "text":
        return "a text"
    noun = "a whole number" if setting.kind == "integer" else "a number"
    if setting.above is not None:
        return f"{noun} above {setting.above:g} and at most {setting.high:g}"
    if setting.kind == "integer" and setting.low is not None and setting.high is not None:
        return f"{noun}, {setting.low} or more and at most {setting.high}"
    if setting.low is not None and setting.high is not None:
        return f"{noun} from {setting.low:g} to {setting.high:g}"
    if setting.low is not None:
        return f"{noun}, {setting.low:g} or more"
    return noun


def _check_together(settings: Settings) -> None:
    most, least = settings.integer("max_thought"), settings.integer("min_thought")
    if most is not None and least is not None and most < least:
        raise UserError(
            f"--max-thought {most} is below --min-thought {least}: "
            "the thought cannot be both. Raise one or lower the other."
        )
    tokens = settings.integer("max_tokens")
    if tokens is not None and least is not None and tokens < least:
        raise UserError(
            f"--max-tokens {tokens} is below --min-thought {least}: "
            "there would be no room for that thought."
        )
