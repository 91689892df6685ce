"""Settings: precedence, bounds, and sentences that name the place and the nearest name."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.cli import options, settings
from forethought.cli.settings import TABLE, load_settings, unknown_variables
from forethought.errors import UserError

from .conftest import SRC, Cli, sentence


def read(text: str, tmp_path: Path, environ: dict[str, str] | None = None, **flags: object):
    file = tmp_path / "config.toml"
    file.write_text(text)
    file.chmod(0o600)
    return load_settings(flags, environ or {}, file)


def test_flag_over_variable_over_file_over_default(tmp_path: Path) -> None:
    variable = {"FORETHOUGHT_TEMPERATURE": "0.3"}
    assert read("", tmp_path).number("temperature") is None
    assert read("temperature = 0.2", tmp_path).number("temperature") == 0.2
    assert read("temperature = 0.2", tmp_path, variable).number("temperature") == 0.3
    flagged = read("temperature = 0.2", tmp_path, variable, temperature=0.0)
    assert flagged.number("temperature") == 0.0
    assert flagged.source("temperature") == "--temperature"


def test_a_switch_is_switched_back_by_what_stands_above(tmp_path: Path) -> None:
    assert read("hide_thought = true", tmp_path).switch("hide_thought")
    assert not read("hide_thought = true", tmp_path, {"FORETHOUGHT_HIDE_THOUGHT": "0"}).switch(
        "hide_thought"
    )
    assert not read("hide_thought = true", tmp_path, {}, hide_thought=False).switch("hide_thought")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("temprature = 1", ["config.toml", "'temprature'", "did you mean temperature?"]),
        ("zzz = 1", ["config.toml", "'zzz'", "Known keys: model"]),
        ("home = '/x'", ["config.toml", "'home'"]),
        ("temperature = 'hot'", ["config.toml: temperature", "a number, 0 or more", "'hot'"]),
        ("temperature = -1", ["config.toml: temperature", "0 or more", "-1"]),
        ("temperature = nan", ["config.toml: temperature", "nan"]),
        ("temperature = inf", ["config.toml: temperature", "inf"]),
        ("threads = true", ["config.toml: threads", "a whole number"]),
        ("threads = 1.5", ["config.toml: threads", "1.5"]),
        ("offline = 1", ["config.toml: offline", "true or false"]),
        ("template = 'r1zero'", ["config.toml: template", "did you mean r1-zero?"]),
        ("temperature = ", ["config.toml", "is not TOML"]),
        ("max_thought = 3\nmin_thought = 4", ["--max-thought 3", "--min-thought 4"]),
    ],
)
def test_what_is_wrong_in_the_file_is_said(text: str, said: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(text, tmp_path)
    for words in said:
        assert words in str(caught.value)


def test_a_file_that_is_no_text_is_said(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(b'model = "\xff"')
    with pytest.raises(UserError, match="byte 9"):
        load_settings({}, {}, file)


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('api_key = "s3cret"')
    file.chmod(0o644)
    with pytest.raises(UserError, match="chmod 600") as caught:
        load_settings({}, {}, file)
    assert "s3cret" not in str(caught.value)


@given(st.sampled_from(TABLE), st.text(min_size=1, max_size=8))
def test_a_variable_is_taken_or_refused_by_its_name(setting: settings.Setting, raw: str) -> None:
    said = f"{setting.variable} must be"
    try:
        load_settings({}, {setting.variable: raw}, Path("/nonexistent/config.toml"))
    except UserError as error:
        said = str(error)
    assert said.startswith(f"{setting.variable} must be")


def test_the_default_model_is_the_one_that_load_takes() -> None:
    from forethought.engines.load import DEFAULT_MODEL

    assert settings.DEFAULT_MODEL == DEFAULT_MODEL


def test_unknown_variables_are_warned_about() -> None:
    warnings = unknown_variables({"FORETHOUGHT_TEMPRATURE": "1", "FORETHOUGHT_TEST_MODEL": "x"})
    assert len(warnings) == 1
    assert "FORETHOUGHT_TEMPRATURE" in warnings[0]
    assert "did you mean FORETHOUGHT_TEMPERATURE?" in warnings[0]


def test_every_variable_that_the_code_reads_is_in_the_table() -> None:
    used = set()
    for path in (SRC / "forethought").rglob("*.py"):
        used |= set(re.findall(r"FORETHOUGHT_[A-Z][A-Z_]*[A-Z]", path.read_text()))
    known = {setting.variable for setting in TABLE}
    assert used - known - {"FORETHOUGHT_TEST_MODEL"} == set()


def test_every_flag_of_the_table_exists_with_its_help() -> None:
    declared = {}
    for name in vars(options):
        for argument in getattr(getattr(options, name), "__metadata__", ()):
            for flag in (argument.default, *argument.param_decls):
                declared[str(flag).split("/")[0]] = argument.help
    for setting in TABLE:
        if setting.flag is not None:
            assert declared[setting.flag] == setting.help


def test_the_table_of_variables_is_printed(cli: Cli) -> None:
    done = cli("paths", "--variables", "--json")
    rows = json.loads(done.stdout)
    assert [row["variable"] for row in rows] == [setting.variable for setting in TABLE]
    assert all(row["help"] for row in rows)
    text = cli("paths", "--variables").stdout.decode()
    assert all(row["variable"] in text for row in rows)


def test_the_program_reads_its_file_and_warns(home: Path, cli: Cli) -> None:
    (home / "config.toml").write_text('modle = "x"')
    done = cli("ask", "hi")
    assert done.returncode == 2
    assert "did you mean model?" in sentence(done)
    (home / "config.toml").write_text("temperature = 0.1")
    done = cli("paths", FORETHOUGHT_TEMPRATURE="1")
    assert done.returncode == 0
    assert "did you mean FORETHOUGHT_TEMPERATURE?" in sentence(done)


def test_models_of_the_file_move_the_models(home: Path, cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    (home / "config.toml").write_text(f"models = '{folder}'")
    assert tomllib.loads((home / "config.toml").read_text())["models"] == str(folder)
    rows = {row["name"]: row for row in json.loads(cli("paths", "--json").stdout)}
    assert rows["models"]["path"] == str(folder)
    rows = {
        row["name"]: row
        for row in json.loads(cli("paths", "--json", FORETHOUGHT_MODELS=str(tmp_path / "v")).stdout)
    }
    assert rows["models"]["path"] == str(tmp_path / "v")
