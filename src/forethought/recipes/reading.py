"""Reading a recipe: a bundled one by its name, a person's own by its path.

Whatever is wrong with a file is one sentence that names the file, the key and the remedy, and it
is said before anything is computed.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ValidationError

from forethought.checkpoints.dataset_files import dataset_file
from forethought.checkpoints.folder import printable
from forethought.checkpoints.network_config import NetworkConfig
from forethought.errors import UserError
from forethought.paths import expand
from forethought.problems.adapters.adapters import Adapters, is_adapted
from forethought.problems.registry import source, sources
from forethought.problems.source import LevelledSource
from forethought.recipes import model_table, on_disk
from forethought.recipes.canonical import canonical_text
from forethought.recipes.curricula import check_curricula
from forethought.recipes.mistakes import Location, Mistake, of_validation, one_sentence, value_text
from forethought.recipes.recipe import Recipe, TokenizerConfig, nearest_of, stage_name

BUNDLED: Final = Path(__file__).parent / "bundled"
MAX_BYTES: Final = 1 << 20
_LINE = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class LoadedRecipe:
    """A recipe that was read and found possible.

    ``folder`` is what its relative paths start from. ``text`` is the canonical TOML of everything,
    defaults included, and ``digest`` its SHA-256: the recipe's identity. ``source`` is what the
    person named it by.
    """

    recipe: Recipe
    folder: Path
    text: str
    digest: str
    source: str

    def changed(self, *, seed: int | None = None, threads: int | None = None) -> LoadedRecipe:
        """This recipe with another seed or number of threads, where one is given."""
        update = {"seed": seed, "threads": threads}
        given = {key: value for key, value in update.items() if value is not None}
        if not given:
            return self
        return _loaded(self.recipe.model_copy(update=given), self.folder, self.source)

    def sources(self, adapters: Adapters) -> list[LevelledSource]:
        """The problem families, and problems of other makers, in the recipe's order."""
        problems = self.recipe.problems
        return sources(problems.families, adapters, folder=self.folder, settings=problems.settings)

    @property
    def adapted(self) -> bool:
        """Whether some of its problems are other makers', and graded in a sandbox."""
        return any(is_adapted(spec) for spec in self.recipe.problems.families)


def bundled_recipes() -> list[str]:
    """The names of the recipes that come with forethought."""
    return sorted(path.stem for path in BUNDLED.glob("*.toml"))


def open_adapters(*, unsafe_no_sandbox: bool = False) -> Adapters:
    """Other makers' problems, for `read_recipe` and the run after it: whoever opens them closes
    them. ``unsafe_no_sandbox``: grade without isolation."""
    return Adapters(dataset_file, unsafe_no_sandbox=unsafe_no_sandbox)


def read_recipe(name_or_path: str, adapters: Adapters | None = None) -> LoadedRecipe:
    """The recipe of a bundled name, or of the path of a TOML file.

    Everything that the file alone decides is checked, then the files that it names (the base, the
    data, a reward of one's own). Other makers' problems are looked for with ``adapters``, or with
    some that are closed again. Raises UserError: one sentence with file, key and remedy.
    """
    if adapters is None:
        with open_adapters() as own:
            return read_recipe(name_or_path, own)
    path = _find(name_or_path)
    where = str(path)
    values = _parse(path)
    recipe = _validate(values, where)
    loaded = _loaded(recipe, path.parent.absolute(), name_or_path)
    found = _check_problems(loaded, adapters)
    if found:
        raise UserError(one_sentence(where, found))
    on_disk.check_files(recipe, loaded.folder, where)
    return loaded


def _loaded(recipe: Recipe, folder: Path, source: str) -> LoadedRecipe:
    text = canonical_text(recipe)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return LoadedRecipe(recipe, folder, text, digest, source)


def _find(name_or_path: str) -> Path:
    """The file that a name or a path means; a path has a separator or ends in .toml."""
    path = expand(name_or_path)
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the path of a recipe's TOML file.")
    if path.suffix == ".toml" or len(path.parts) > 1:
        raise UserError(f"there is no recipe {path}: check the path.")
    names = bundled_recipes()
    if name_or_path in names:
        return BUNDLED / f"{name_or_path}.toml"
    near = nearest_of(name_or_path, names)
    if near.endswith("?"):
        near = f"{near} There are {', '.join(names)}"
    raise UserError(
        f"there is no recipe {printable(name_or_path, 80)!r}: {near}, or give the path of a TOML "
        "file."
    )


def _parse(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}).") from None
    if len(raw) > MAX_BYTES:
        raise UserError(f"{path} has more than {MAX_BYTES >> 20} MiB: that is no recipe.")
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: line {line} is not UTF-8: save the file as UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(_syntax(path, str(error), raw)) from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply: that is no recipe.") from None


def _syntax(path: Path, message: str, raw: bytes) -> str:
    match = _LINE.fullmatch(message)
    if match is None:
        return f"{path} is not TOML: {printable(message)}."
    if match[2] is None:
        lines = raw.decode("utf-8").split("\n")
        line, column = len(lines), len(lines[-1]) + 1
    else:
        line, column = int(match[2]), int(match[3])
    said = printable(match[1])
    return f"{path}: line {line}, column {column}: {said[:1].lower()}{said[1:]}; correct the TOML."


def _validate(values: Mapping[str, object], where: str) -> Recipe:
    """The recipe of a parsed file. The network comes first: its keys are not those of a class."""
    mistakes: list[Mistake] = []
    rest = {key: _tuples(value) for key, value in values.items()}
    table = rest.pop("model", None)
    if isinstance(table, Mapping):
        network = _network(table, rest, mistakes)
        if network is not None:
            rest["model"] = network
    elif table is not None:
        mistakes.append(Mistake("model", f"is {value_text(table)}; it must be a table"))
    try:
        recipe = Recipe.model_validate(rest)
    except ValidationError as error:
        # What is wrong with the whole (no key) may follow from a network that could not be read.
        mistakes += [one for one in of_validation(error, Recipe) if one.key or not mistakes]
    if mistakes:
        raise UserError(one_sentence(where, mistakes))
    return recipe


def _network(
    table: Mapping[str, object], rest: Mapping[str, object], mistakes: list[Mistake]
) -> NetworkConfig | None:
    wrong = model_table.misplaced(table)
    mistakes += [Mistake(f"model.{key}", text) for key, text in wrong.items()]
    if wrong:
        return None
    tokenizer = rest.get("tokenizer")
    size = tokenizer.get("vocab_size") if isinstance(tokenizer, Mapping) else None
    usable = isinstance(size, int) and 300 <= size <= 1 << 20
    default = TokenizerConfig().vocab_size
    rows = model_table.placeholder_rows(size if usable and isinstance(size, int) else default)
    prefix: Location = ("model", "rope_scaling")
    model: type[BaseModel] = model_table.scaling_class(table)
    try:
        model_table.to_scaling(table)
        prefix, model = ("model",), model_table.network_class(table)
        return model_table.to_network(table, rows)
    except ValidationError as error:
        mistakes += of_validation(error, model, prefix)
        return None


def _tuples(value: object) -> object:
    """TOML's lists as tuples, which is what strict models take."""
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value


def _check_problems(loaded: LoadedRecipe, adapters: Adapters) -> list[Mistake]:
    """Families that are not there, levels that a family lacks, tables that name no family."""
    problems = loaded.recipe.problems
    found: dict[str, LevelledSource] = {}
    for number, spec in enumerate(problems.families, 1):
        key = f"problems.families[{number}]"
        refused = _check_adapted(loaded.recipe, spec, key) if is_adapted(spec) else []
        if refused:
            return refused
        try:
            one = source(spec, adapters, folder=loaded.folder, settings=problems.settings)
            if is_adapted(spec):
                for level in problems.levels.get(one.name, range(1, one.levels + 1)):
                    one.problem(level, 0)
        except UserError as error:
            return [Mistake(key, f": {str(error).rstrip('.')}")]
        if one.name in found:
            return [Mistake("problems.families", f"names two families called {one.name!r}")]
        found[one.name] = one
    mistakes: list[Mistake] = []
    for key in ("levels", "weights", "settings"):
        for name in getattr(problems, key):
            if name not in found:
                text = (
                    f"is for a family that is not in problems.families; {nearest_of(name, found)}"
                )
                mistakes.append(Mistake(f"problems.{key}.{name}", text))
    for name, levels in problems.levels.items():
        most = found[name].levels if name in found else max(levels)
        mistakes += [
            Mistake(f"problems.levels.{name}", f"has {level}; its levels are 1 to {most}")
            for level in levels
            if not 1 <= level <= most
        ]
    return mistakes or check_curricula(loaded.recipe, list(found.values()))


def _check_adapted(recipe: Recipe, spec: str, key: str) -> list[Mistake]:
    """What other makers' problems cannot do: be worked out, and be asked in Chinese."""
    name = printable(spec, 80)
    for number, stage in enumerate(recipe.stages, 1):
        if stage.kind == "pretrain":
            text = (
                f"({name}) has no worked documents, which {stage_name(number, stage.kind)} is made "
                "of; pretrain on other families, and name that model as the base of this recipe"
            )
            return [Mistake(key, text)]
    if recipe.problems.language == "zh":
        return [Mistake("problems.language", f'is "zh", and {name} asks in English only')]
    return []
