"""Write the generated parts of docs/, between their markers, from the code they describe.

    .venv/bin/python docs/make_tables.py

A test fails when a part is not what this script would write.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

DOCS = Path(__file__).parent
TRAIN = "train-a-reasoning-model.md"
PROBLEMS = "problems.md"
OWN = "your-own-task.md"
MEANINGS: dict[str, dict[str, str]] = tomllib.loads((DOCS / "meanings.toml").read_text("utf-8"))
"""What each key means, by its table."""


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell or " " for cell in line) + " |" for line in lines)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def variables() -> str:
    """Every setting: what ``forethought paths --variables`` lists."""
    from forethought.cli.settings import variables_table

    rows = [
        [
            _code(row["variable"]),
            _code(row["key"]),
            _code(row["flag"]),
            row["kind"].replace(" | ", ", "),
            _code(row["default"]),
            row["help"],
        ]
        for row in variables_table()
    ]
    return _table(["variable", "key in config.toml", "option", "kind", "default", "what"], rows)


def chat_commands() -> str:
    """Every command of ``forethought chat``: what ``/help`` lists."""
    from forethought.cli.chat_commands import COMMANDS

    rows = [
        [_code(command.usage).replace("|", "\\|"), command.help] for command in COMMANDS.values()
    ]
    return _table(["command", "what it does"], rows)


def probe() -> str:
    """What the llama.cpp wheel answered when it was asked."""
    from forethought.engines.llama_probe import EXPECTED, QUESTIONS

    rows = [
        [_code(name), QUESTIONS[name], "yes" if answer else "no"]
        for name, answer in EXPECTED.items()
    ]
    return _table(["name", "question", "answer"], rows)


# -- recipes


def recipe_tables() -> dict[str, tuple[type[BaseModel], str]]:
    """The tables of a recipe by what a reader calls them: the model, and the one whose fields it
    shares with others, which stand in a table of their own."""
    from forethought.recipes import recipe
    from forethought.training import config, losses

    return {
        "the top of the file": (recipe.Recipe, ""),
        "`[tokenizer]`": (recipe.TokenizerConfig, ""),
        "`[problems]`": (recipe.ProblemsConfig, ""),
        "`[evaluation]`": (config.EvaluationConfig, ""),
        "`[[stages]]`, whatever its `kind`": (config.StageConfig, ""),
        "`optimizer` of a stage": (config.OptimizerConfig, ""),
        '`kind = "pretrain"`': (config.PretrainConfig, "StageConfig"),
        "`corpus` of a pretrain stage": (config.CorpusConfig, ""),
        "`balance` of a stage": (config.BalanceConfig, ""),
        '`kind = "sft"`': (config.SFTConfig, "StageConfig"),
        '`kind = "rejection-sample"`': (config.RejectionConfig, "StageConfig"),
        '`kind = "rl"`': (config.RLConfig, "StageConfig"),
        "`curriculum` of an RL stage": (config.CurriculumConfig, ""),
        "`reward` of an RL stage": (config.RewardConfig, ""),
        "`loss` of an RL stage": (losses.LossConfig, ""),
    }


def recipe_keys() -> str:
    """Every key of a recipe but those of ``[model]``, from the pydantic models."""
    parts = []
    for title, (model, shared) in recipe_tables().items():
        schema = model.model_json_schema()
        rows = [
            [_code(key), _kind(schema["properties"][key]), _default(model, key), meaning]
            for key, meaning in MEANINGS[model.__name__].items()
        ]
        known = [key for key in model.model_fields if key not in MEANINGS.get(shared, {})]
        if sorted(known) != sorted(MEANINGS[model.__name__]):
            raise SystemExit(f"docs/meanings.toml: {model.__name__} has {', '.join(known)}")
        table = _table(["key", "kind", "without it", "what"], rows)
        parts.append(f"**{title[0].upper()}{title[1:]}**\n\n{table}")
    return "\n\n".join(parts)


_LARGE = 1e6
"""Bounds from here on only keep numbers sane; nobody needs to read them."""


def _kind(schema: Mapping[str, Any]) -> str:
    """What a value of a JSON schema looks like in TOML."""
    for choice in schema.get("anyOf", ()):
        if choice.get("type") != "null":
            return _kind(choice)
    if "enum" in schema:
        return ", ".join(_code(json.dumps(value)) for value in schema["enum"])
    if "const" in schema:
        return _code(json.dumps(schema["const"]))
    names = {"integer": "whole number", "number": "number", "string": "text"}
    names |= {"boolean": "`true`, `false`", "array": "list", "object": "table"}
    kind = names.get(schema.get("type", "object"), "table")
    low, high = schema.get("minimum"), schema.get("maximum", schema.get("exclusiveMaximum"))
    if "exclusiveMinimum" in schema:
        return f"{kind} above {schema['exclusiveMinimum']:g}" + _upper(high, schema)
    if low is None:
        return kind
    if high is None or high >= _LARGE:
        return f"{kind}, at least {low:g}"
    if "exclusiveMaximum" in schema:
        return f"{kind}, at least {low:g}, below {high:g}"
    return f"{kind}, {low:g} to {high:g}"


def _upper(high: float | None, schema: Mapping[str, Any]) -> str:
    if high is None or high >= _LARGE:
        return ""
    return f", {'below' if 'exclusiveMaximum' in schema else 'at most'} {high:g}"


def _default(model: type[BaseModel], key: str) -> str:
    from pydantic import BaseModel

    field = model.model_fields[key]
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        changed = value.model_dump(exclude_defaults=True)
        shown = ", ".join(f"{name} {json.dumps(one)}" for name, one in changed.items())
        return f"its own ({_code(shown)})" if shown else "its own"
    return _code(json.dumps(value)) if value not in (None, {}) else ""


def presets() -> str:
    """The presets of the loss, each with all of its keys."""
    from forethought.training.losses import PRESETS, LossConfig

    made = {name: LossConfig(preset=name) for name in PRESETS}
    keys = [key for key in LossConfig.model_fields if key not in ("preset", "overlong_share")]
    rows = [
        [_code(key), *(_code(str(getattr(config, key))) for config in made.values())]
        for key in keys
    ]
    return _table(["", *map(_code, made)], rows)


_NEEDED = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
}
_NEEDED_BY_DEEPSEEK = {
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "moe_intermediate_size": 128,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
}


def model_keys() -> str:
    """Every key of ``[model]``, and which network has it."""
    from pydantic import ValidationError

    from forethought.recipes.model_table import known_keys, to_network

    given: dict[str, dict[str, object]] = {
        "deepseek_v3": {**_NEEDED, **_NEEDED_BY_DEEPSEEK},
        "qwen3": dict(_NEEDED),
    }

    def without(kind: str, key: str) -> str:
        if key not in known_keys(kind):
            return ""
        table = {"model_type": kind, **given[kind]}
        if key == "model_type":
            return _code("deepseek_v3")
        try:
            value = getattr(to_network({k: v for k, v in table.items() if k != key}, 512), key)
        except ValidationError:
            return "needed"
        if key in ("head_dim", "num_key_value_heads"):
            return "derived"
        return "none" if value is None else _code(json.dumps(value))

    keys = {key for kind in given for key in known_keys(kind)}
    if keys != set(MEANINGS["model"]):
        raise SystemExit(f"docs/meanings.toml: model differs in {keys ^ set(MEANINGS['model'])}")
    rows = [
        [_code(key), without("deepseek_v3", key), without("qwen3", key), meaning]
        for key, meaning in MEANINGS["model"].items()
    ]
    return _table(["key", "DeepSeek", "dense (Qwen3)", "what"], rows)


def metrics() -> str:
    """Every key of a line of metrics.jsonl."""
    from forethought.training.stage import METRICS

    rows = [
        [_code(key), "every" if key in ("stage", "step", *METRICS) else "", meaning]
        for key, meaning in MEANINGS["metrics"].items()
    ]
    return _table(["key", "on which lines", "what"], rows)


# -- problems


def family_sections() -> str:
    """A section for each family: its docstring, and an example in each language."""
    from forethought.problems.registry import BUNDLED, family

    parts = []
    for name in BUNDLED:
        one = family(name)
        bare = " Bare: in pretraining it appears as question and answer only." if one.bare else ""
        parts.append(f"### {name}\n\nLevels: {one.levels}.{bare}")
        parts += _docstrings(type(one))
        level = min(2, one.levels)
        examples = [one.problem(level, 3, language) for language in ("en", "zh")]
        text = "\n\n".join(f"{p.text}\n-> {p.answer}" for p in examples)
        parts.append(f"Level {level}, seed 3, in both languages:\n\n```text\n{text}\n```")
    return "\n\n".join(parts)


def _docstrings(cls: type) -> Iterator[str]:
    """What a family says of itself, and what it takes over from a class of its own."""
    import inspect

    from forethought.problems.family import Family

    for one in cls.__mro__:
        if one is Family:
            return
        yield re.sub(r"``(.+?)``", r"`\1`", inspect.cleandoc(one.__doc__ or ""))


def problem_speed() -> str:
    """What the benchmark of problems measured."""
    path = DOCS.parent / "benchmarks" / "results" / "problems.txt"
    result = json.loads(path.read_text("utf-8").splitlines()[-1])
    rows = [
        [name, *(f"{row[key]:,}" for key in ("best", "median", "verified", "verified_median"))]
        for name, row in result["rows"].items()
    ]
    head = ["family", "problems/s", "median", "verified/s", "median"]
    return f"{result['machine']}\n\n{_table(head, rows)}"


# -- files that are shown


def _shown(name: str, language: str) -> Callable[[], str]:
    def make() -> str:
        text = (DOCS / "examples" / name).read_text("utf-8")
        return f"```{language}\n{text}```"

    return make


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "variables": ("ask-and-watch-it-think.md", variables),
    "chat-commands": ("ask-and-watch-it-think.md", chat_commands),
    "probe": ("llama-cpp.md", probe),
    "recipe-keys": (TRAIN, recipe_keys),
    "model-keys": (TRAIN, model_keys),
    "presets": (TRAIN, presets),
    "metrics": (TRAIN, metrics),
    "families": (PROBLEMS, family_sections),
    "problem-speed": (PROBLEMS, problem_speed),
    "my_task.py": (OWN, _shown("my_task.py", "py")),
    "my_reward.py": (OWN, _shown("my_reward.py", "py")),
    "my-task.toml": (OWN, _shown("my-task.toml", "toml")),
}


def filled(text: str, name: str, table: str) -> str:
    """``text`` with ``table`` between the markers of ``name``."""
    pattern = rf"(<!-- {re.escape(name)}:begin[^>]*-->\n).*?(<!-- {re.escape(name)}:end -->)"
    new, count = re.subn(
        pattern, lambda found: f"{found[1]}{table}\n{found[2]}", text, flags=re.DOTALL
    )
    if count != 1:
        raise SystemExit(f"there are {count} places for the table {name} instead of one")
    return new


def main() -> None:
    """Fill every table in."""
    for name, (file, make) in TABLES.items():
        path = DOCS / file
        path.write_text(filled(path.read_text("utf-8"), name, make()), encoding="utf-8")


if __name__ == "__main__":
    main()
