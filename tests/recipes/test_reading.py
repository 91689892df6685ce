"""Recipes: what is read, and what every mistake is called."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints import tiny_checkpoints
from forethought.checkpoints.network_config import DeepseekConfig, DenseConfig
from forethought.errors import UserError
from forethought.recipes import canonical, reading
from forethought.recipes.model_table import with_vocabulary
from forethought.recipes.reading import read_recipe
from forethought.recipes.recipe import Recipe
from forethought.training.config import CurriculumConfig
from recipes.recipe_text import GOOD, changed

DENSE = """\
model_type = "{}"
hidden_size = 64
intermediate_size = 128
num_hidden_layers = 2
num_attention_heads = 4
max_position_embeddings = 512
"""
MODEL = GOOD[GOOD.index("[model]\n") + len("[model]\n") : GOOD.index("\n[tokenizer]")]
RL = GOOD[GOOD.rindex("[[stages]]") :]
SFT = """\
[[stages]]
kind = "sft"
steps = 3
data = "chats.jsonl"
batch_conversations = 2
max_length = 64
optimizer.learning_rate = 1e-4
"""


def read(folder: Path, text: str) -> reading.LoadedRecipe:
    (folder / "r.toml").write_text(text, encoding="utf-8")
    return read_recipe(str(folder / "r.toml"))


def refused(folder: Path, text: str) -> str:
    """The sentence, without the path of the file that it begins with."""
    with pytest.raises(UserError) as caught:
        read(folder, text)
    sentence = str(caught.value)
    assert sentence.startswith(f"{folder / 'r.toml'}: "), sentence
    assert "\n" not in sentence
    assert sentence[-1] in ".?"
    return sentence.removeprefix(f"{folder / 'r.toml'}: ").replace(str(folder), "FOLDER")


def test_what_is_not_said_has_its_default(tmp_path: Path) -> None:
    loaded = read(tmp_path, GOOD)
    assert loaded.folder == tmp_path
    model = loaded.recipe.model
    assert isinstance(model, DeepseekConfig)
    assert (model.model_type, model.scoring_func, model.topk_method) == (
        "deepseek_v3", "sigmoid", "noaux_tc"
    )  # fmt: skip
    assert (model.first_k_dense_replace, model.num_nextn_predict_layers) == (1, 1)
    assert model.vocab_size == 512  # 500, rounded up to a multiple of 64
    pretrain, rl = loaded.recipe.stages
    assert pretrain.kind == "pretrain"
    assert pretrain.corpus.max_document_tokens == 64
    assert rl.kind == "rl"
    assert rl.loss == type(rl).model_fields["loss"].default
    with reading.open_adapters() as adapters:
        assert [one.name for one in loaded.sources(adapters)] == ["sorting", "countdown"]


@pytest.mark.parametrize(
    ("model_type", "bias", "norm"),
    [("llama", False, False), ("qwen2", True, False), ("qwen3", False, True)],
)
def test_dense_networks_get_what_their_type_means(
    model_type: str, bias: bool, norm: bool, tmp_path: Path
) -> None:
    model = read(tmp_path, changed(MODEL, DENSE.format(model_type))).recipe.model
    assert isinstance(model, DenseConfig)
    assert (model.attention_bias, model.qk_norm) == (bias, norm)
    assert (model.num_key_value_heads, model.head_dim) == (4, 16)


def test_scaled_positions_have_hugging_faces_keys(tmp_path: Path) -> None:
    scaling = 'rope_scaling = {rope_type = "yarn", factor = 4, original_max_position_embeddings=64}'
    loaded = read(tmp_path, changed("[model]\n", f"[model]\n{scaling}\n"))
    assert loaded.recipe.model is not None
    assert loaded.recipe.model.rope_scaling is not None
    assert loaded.recipe.model.rope_scaling.factor == 4
    assert read(tmp_path, loaded.text).recipe == loaded.recipe


def test_the_vocabulary_comes_from_the_tokenizer(tmp_path: Path) -> None:
    model = read(tmp_path, GOOD).recipe.model
    assert model is not None
    network = with_vocabulary(model, 449, bos=0, eos=1, dtype="bfloat16")
    assert (network.vocab_size, network.bos_token_id, network.eos_token_ids, network.dtype) == (
        512, 0, (1,), "bfloat16"
    )  # fmt: skip
    placeholders = {"bos_token_id": None, "eos_token_ids": (), "dtype": "float32"}
    assert network.model_copy(update=placeholders) == model


def test_the_canonical_text_says_everything_and_reads_back(tmp_path: Path) -> None:
    loaded = read(tmp_path, GOOD)
    again = read(tmp_path, loaded.text)
    assert again.recipe == loaded.recipe
    assert (again.text, again.digest) == (loaded.text, loaded.digest)
    assert "spike_factor = 4.0" in loaded.text
    assert "vocab_size = 512" not in loaded.text


def test_a_curriculum_is_a_table_that_may_be_empty(tmp_path: Path) -> None:
    plain = read(tmp_path, GOOD)
    assert "curriculum" not in plain.text
    assert plain.recipe.stages[1].curriculum is None
    loaded = read(tmp_path, GOOD + "curriculum = {}\n")
    assert "[stages.curriculum]\nstart_levels = 1\n" in loaded.text
    assert loaded.digest != plain.digest
    assert loaded.recipe.stages[1].curriculum == CurriculumConfig()
    assert read(tmp_path, loaded.text).recipe == loaded.recipe
    # More than one family has: another still rises.
    longer = changed("levels.sorting = [1, 2]\n", "") + "curriculum.start_levels = 3\n"
    assert read(tmp_path, longer).recipe
    # The order of levels matters to a curriculum alone.
    assert read(tmp_path, changed("[1, 2]", "[2, 1]")).recipe


def test_the_digest_is_of_what_is_meant(tmp_path: Path) -> None:
    digest = read(tmp_path, GOOD).digest
    same = changed("steps = 10\nbatch_tokens = 512", "batch_tokens = 0x200 # tokens\nsteps = 10")
    assert read(tmp_path, same.replace("seed = 0\n", "")).digest == digest
    assert read(tmp_path, "seed = 0\n" + GOOD).digest == digest
    assert read(tmp_path, "seed = 1\n" + GOOD).digest != digest
    loaded = read(tmp_path, GOOD)
    assert loaded.changed() is loaded
    other = loaded.changed(seed=1, threads=2)
    assert other.text == read(tmp_path, "seed = 1\n" + changed("threads = 1", "threads = 2")).text


def test_an_identity_is_flat(tmp_path: Path) -> None:
    values = canonical.flat_values(read(tmp_path, GOOD).recipe)
    assert values["stages[2].optimizer.learning_rate"] == 1e-4
    assert values["problems.levels.sorting"] == "[1, 2]"
    assert values["model.hidden_size"] == 64
    assert all(isinstance(value, bool | int | float | str) for value in values.values())


@given(st.text(min_size=1, max_size=100), st.floats(min_value=1e-9, max_value=0.5), st.text())
def test_every_text_and_number_survives_the_canonical_text(
    name: str, rate: float, own: str
) -> None:
    import tomllib

    values = tomllib.loads(GOOD)
    values["stages"][1]["optimizer"] = {"learning_rate": rate}
    values["stages"][1]["reward"] = {"own": own}
    del values["model"]
    values |= {"name": name, "base": own}
    del values["tokenizer"]
    recipe = Recipe.model_validate(reading._tuples(values))
    back = tomllib.loads(canonical.canonical_text(recipe))
    assert Recipe.model_validate(reading._tuples(back)) == recipe


BAD = [
    # unknown keys, with the nearest
    ("group_size", "group_sise",
     "stages[2] (rl): group_sise is an unknown key; did you mean group_size?"),
    ("corpus.max_document_tokens", "corpus.max_document_token",
     "stages[1] (pretrain): corpus.max_document_token is an unknown key; did you mean "
     "max_document_tokens?"),
    ("hidden_size", "hiden_size",
     "model.hiden_size is no key of a deepseek_v3; did you mean hidden_size?"),
    ("[problems]", "[problem]", "problem is an unknown key; did you mean problems?"),
    # missing ones
    ("group_size = 4\n", "",
     "stages[2] (rl): group_size is missing; it has no default, so the file must say it."),
    ("kv_lora_rank = 32\n", "",
     "model.kv_lora_rank is missing; it has no default, so the file must say it."),
    ('kind = "rl"\n', "",
     "stages[2]: kind is missing; there are pretrain, sft, rejection-sample, rl."),
    # wrong types
    ("steps = 4", "steps = 4.0", "stages[2] (rl): steps is 4.0; it must be a whole number."),
    ("steps = 4", "steps = true", "stages[2] (rl): steps is true; it must be a whole number."),
    ('name = "tiny"', "name = 3", "name is 3; it must be a text in quotes."),
    ("hidden_size = 64", 'hidden_size = "64"',
     'model.hidden_size is "64"; it must be a whole number.'),
    ('families = ["sorting", "countdown"]', 'families = "sorting"',
     'problems.families is "sorting"; it must be a list, [...].'),
    ("optimizer.learning_rate = 1e-4", "optimizer = 1e-4",
     "stages[2] (rl): optimizer is 0.0001; it must be a table."),
    # out of range
    ("threads = 1", "threads = 0", "threads is 0; it must be at least 1."),
    ("1e-4", "0.0", "stages[2] (rl): optimizer.learning_rate is 0.0; it must be above 0."),
    ("1e-4", "inf", "stages[2] (rl): optimizer.learning_rate is inf; it must be a finite number."),
    ("minibatches = 2", "minibatches = 2\noptimizer.beta1 = 1.0",
     "stages[2] (rl): optimizer.beta1 is 1.0; it must be below 1."),
    ("vocab_size = 500", "vocab_size = 100",
     "tokenizer.vocab_size is 100; it must be at least 300."),
    # choices
    ('kind = "rl"', 'kind = "rll"', 'stages[2]: kind is "rll"; did you mean rl?'),
    ("threads = 1", 'prompt = "chta"', "prompt is \"chta\"; it must be 'chat' or 'r1-zero'."),
    ("threads = 1", 'device = "gpu"', 'device is "gpu"; it must be cpu, cuda or cuda:N.'),
    ("threads = 1", 'lanes = 2\ndevice = "cuda"',
     "lanes = 2 are for the CPU, and device is 'cuda': set lanes to 1, or device to \"cpu\"."),
    ("[model]", '[model]\nmodel_type = "lama"', "model.model_type is 'lama'; did you mean llama?"),
    ("[model]", '[model]\nrope_scaling = {rope_type = "llama3"}',
     "model.rope_scaling.rope_type is 'llama3'; a deepseek_v3 knows yarn."),
    # what comes from elsewhere
    ("[model]", "[model]\nvocab_size = 512",
     "model.vocab_size does not belong here: the size comes from the tokenizer that the run "
     "trains: set tokenizer.vocab_size."),
    ("[model]", "[model]\neos_token_id = 1",
     "model.eos_token_id does not belong here: the id comes from the tokenizer that the run "
     "trains: leave it out."),
    ("[model]", '[model]\ndtype = "bfloat16"',
     "model.dtype does not belong here: it is the whole run's: write dtype at the top of the "
     "file."),
    # impossible combinations
    ("minibatches = 2", "minibatches = 3",
     "stages[2] (rl): minibatches 3 does not divide problems_per_rollout 4 (16 samples)."),
    ("group_size = 4", "group_size = 1",
     "stages[2] (rl): group_size is 1: a group's mean is its own baseline, so it needs at least "
     "2."),
    ("group_size = 4", "group_size = 4\ntop_p = 0.9",
     "stages[2] (rl): top_p is 0.9: rollouts must be drawn from the whole distribution, or "
     "sampler and trainer disagree; leave it at 1 (evaluation may truncate)."),
    ("optimizer.learning_rate = 1e-4", "optimizer = {learning_rate = 1e-4, warmup_steps = 5}",
     "stages[2] (rl): optimizer.warmup_steps 5 is more than the 4 steps of the stage."),
    ("group_size = 4", "group_size = 4\nreward = {accuracy = 0, format = 0}",
     "stages[2] (rl): reward: accuracy, format and own_weight are all 0, so nothing is rewarded."),
    ("group_size = 4", "group_size = 4\nloss.bata = 0.1",
     "stages[2] (rl): loss.bata is an unknown key; did you mean beta?"),
    ("num_experts_per_tok = 2", "num_experts_per_tok = 5",
     "model: num_experts_per_tok 5 is more than the 4 experts that the kept groups hold."),
    ("problems = 4\nmax_tokens = 32", "problems = 4\nmax_tokens = 513",
     "evaluation.max_tokens 513 exceeds the 512 of model.max_position_embeddings; lower the one "
     "or raise the other."),
    ("corpus.max_document_tokens = 64", "",
     "stages[1] (pretrain): corpus.max_document_tokens 1024 exceeds the 512 of "
     "model.max_position_embeddings; lower the one or raise the other."),
    ("threads = 1", 'base = "x"',
     "base and [model] exclude each other: base brings its own model; remove one of them."),
    ("[model]\n" + MODEL, "",
     "there is neither [model] nor base: describe a network in [model], or name a folder with "
     "weights in base."),
    (GOOD[GOOD.index("[[stages]]") : GOOD.rindex("[[stages]]")], "",
     "stages[1] (rl) would train random weights: begin with a pretrain stage, or with the weights "
     "of a base."),
    # families and levels
    ('["sorting", "countdown"]', '["sortin"]',
     "problems.families[1]: there is no problem family 'sortin': did you mean 'sorting'?"),
    ('["sorting", "countdown"]', '["sorting", "sorting"]',
     "problems: families names 'sorting' twice; name it once (weights says more)."),
    ('["sorting", "countdown"]', "[]", "problems.families is empty; name at least one."),
    ("[1, 2]", "[1, 5]", "problems.levels.sorting has 5; its levels are 1 to 4."),
    ("levels.sorting", "levels.sortin",
     "problems.levels.sortin is for a family that is not in problems.families; did you mean "
     "sorting?"),
    ("levels.sorting = [1, 2]", "weights.sorting = 0",
     "problems.weights.sorting is 0; it must be above 0."),
    # curricula
    ("group_size = 4", "group_size = 4\ncurriculum.raise_at = 1.5",
     "stages[2] (rl): curriculum.raise_at is 1.5; it must be at most 1."),
    ("group_size = 4", "group_size = 4\ncurriculum.raise_at = -0.1",
     "stages[2] (rl): curriculum.raise_at is -0.1; it must be above 0."),
    ("group_size = 4", "group_size = 4\ncurriculum.over = 0",
     "stages[2] (rl): curriculum.over is 0; it must be at least 1."),
    ("group_size = 4", "group_size = 4\ncurriculum.newest = 0",
     "stages[2] (rl): curriculum.newest is 0; it must be above 0."),
    ("group_size = 4", "group_size = 4\ncurriculum.raise_ta = 0.5",
     "stages[2] (rl): curriculum.raise_ta is an unknown key; did you mean raise_at?"),
    ("group_size = 4", "group_size = 4\ncurriculum = true",
     "stages[2] (rl): curriculum is true; it must be a table."),
    ("group_size = 4", "group_size = 4\ncurriculum.start_levels = 2",
     "stages[2] (rl): curriculum.start_levels is 2, and no family of the recipe has more than "
     "2 levels (sorting), so that none could ever open: lower it, or remove the curriculum."),
    (GOOD[GOOD.index("levels.sorting") :], "levels = {sorting = [2], countdown = [1]}\n"
     + GOOD[GOOD.index("[evaluation]") :] + "curriculum = {}\n",
     "stages[2] (rl): curriculum.start_levels is 1, and no family of the recipe has more than "
     "1 level (sorting), so that none could ever open: give a family more in problems.levels, or "
     "remove the curriculum."),
    (GOOD[GOOD.index("levels.sorting") :], "levels.sorting = [3, 1, 1]\n"
     + GOOD[GOOD.index("[evaluation]") :] + "curriculum = {}\n",
     "problems.levels.sorting is [3, 1, 1], and the curriculum of stages[2] (rl) takes each level "
     "once, the easiest first: write [1, 3]."),
    # files
    ("group_size = 4", 'group_size = 4\nreward.own = "mine.py:reward"',
     "stages[2] (rl): reward.own: there is no file FOLDER/mine.py: write file.py:function."),
    (RL, SFT, "stages[2] (sft): data: there is no file FOLDER/chats.jsonl: correct the path."),
    # several at once
    ("threads = 1", "threads = 0\nseed = -1", "seed is -1; it must be at least 0 (and 1 more)."),
    ("group_size = 4\nminibatches = 2", "group_sise = 4\nminibatch = 2",
     "stages[2] (rl): group_sise is an unknown key; did you mean group_size (and 1 more)?"),
    # TOML itself
    ('name = "tiny"', "name = tiny", "line 1, column 8: invalid value; correct the TOML."),
    ("threads = 1", "name = 'x'", "line 2, column 11: cannot overwrite a value; correct the TOML."),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "sentence"), BAD, ids=[bad[2][:60] for bad in BAD])
def test_a_mistake_is_one_sentence(old: str, new: str, sentence: str, tmp_path: Path) -> None:
    assert refused(tmp_path, changed(old, new)) == sentence


def test_a_file_that_ends_too_early(tmp_path: Path) -> None:
    assert refused(tmp_path, 'name = "x"\nfamilies = [').startswith("line 2, column 13: ")


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    for name in ("nowhere.toml", "deep/nowhere"):
        with pytest.raises(UserError, match=r"there is no recipe .*: check the path"):
            read_recipe(str(tmp_path / name))
    with pytest.raises(UserError, match="is a folder"):
        read_recipe(str(tmp_path))
    (tmp_path / "r.toml").write_bytes(b'name = "a"\n\xff')
    with pytest.raises(UserError, match="line 2 is not UTF-8"):
        read_recipe(str(tmp_path / "r.toml"))
    (tmp_path / "r.toml").write_bytes(b"x = " + b"[" * 5000)
    with pytest.raises(UserError, match=r"nested too deeply|line 1"):
        read_recipe(str(tmp_path / "r.toml"))


def test_a_name_is_a_bundled_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("r1-tiny", "countdown"):
        (tmp_path / f"{name}.toml").write_text(GOOD)
    monkeypatch.setattr(reading, "BUNDLED", tmp_path)
    assert read_recipe("r1-tiny").recipe.name == "tiny"
    with pytest.raises(UserError) as caught:
        read_recipe("r1-tini")
    assert str(caught.value) == (
        "there is no recipe 'r1-tini': did you mean r1-tiny? There are countdown, r1-tiny, or "
        "give the path of a TOML file."
    )


def test_every_bundled_recipe_can_be_read() -> None:
    for name in reading.bundled_recipes():
        assert read_recipe(name).recipe.name == name


# -- files beside the recipe


def line(*messages: dict[str, Any]) -> bytes:
    return json.dumps({"messages": messages}).encode()


CHAT = line({"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"})
BAD_LINES = [
    (b'{"messages" 1}', "this is not JSON (column 13: Expecting ':' delimiter)"),
    (b"\xff", "this is not JSON ('utf-8' codec can't decode byte 0xff in position 0: invalid start "
     "byte)"),
    (b"[]", 'there are no messages; write {"messages": [{"role": ..., "content": ...}]}'),
    (b'{"messages": []}',
     'there are no messages; write {"messages": [{"role": ..., "content": ...}]}'),
    (line({"role": "tool", "content": ""}),
     "message 1 has the role 'tool'; there are system, user, assistant"),
    (line({"role": "user"}), "message 1 has no content that is a text"),
    (line({"role": "user", "content": "x"}),
     "no message is the assistant's, so there is nothing to learn"),
    (line({"role": "assistant", "content": "x", "thought": 3}),
     "message 1 has a thought that is no text"),
    (b'{"messages": 1, "messages": 2}', "this is not JSON (the key 'messages' appears twice)"),
    (b"[" * 100_000, "this is not JSON (nested too deeply)"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "text"), BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_bad_line_of_data_has_its_number(bad: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_bytes(CHAT + b"\n\n" + bad + b"\n" + CHAT)
    assert refused(tmp_path, changed(RL, SFT)) == (
        f"stages[2] (sft): data: FOLDER/chats.jsonl line 3: {text}."
    )


def test_good_data_is_taken_and_none_is_not(tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_bytes(CHAT + b"\n")
    assert read(tmp_path, changed(RL, SFT)).recipe.stages[1].kind == "sft"
    (tmp_path / "chats.jsonl").write_bytes(b"\n")
    assert "holds no conversation" in refused(tmp_path, changed(RL, SFT))


def test_a_reward_of_ones_own_is_found_without_being_run(tmp_path: Path) -> None:
    def own(spec: str) -> str:
        return changed("group_size = 4", f'group_size = 4\nreward.own = "{spec}"')

    mine = tmp_path / "mine.py"
    mine.write_text("raise SystemExit\ndef reward(problem, reply): return 1.0\n")
    assert read(tmp_path, own("mine.py:reward"))
    assert refused(tmp_path, own("mine.py:rewards")) == (
        "stages[2] (rl): reward.own: FOLDER/mine.py has no function rewards; did you mean reward?"
    )
    assert "write file.py:function" in refused(tmp_path, own("mine.py"))
    mine.write_text("def reward(:\n")
    assert "mine.py line 1 is not Python" in refused(tmp_path, own("mine.py:reward"))


BASE = changed("[model]\n" + MODEL, "").replace("threads = 1", 'base = "start"')
BASE = BASE.replace("[tokenizer]\nvocab_size = 500\n", "")


def test_a_base_has_weights_and_a_tokenizer_that_fits(tmp_path: Path) -> None:
    base = tmp_path / "start"
    assert refused(tmp_path, BASE) == (
        "base: FOLDER/start does not exist: give the folder that holds the model's config.json."
    )
    tiny_checkpoints.make("qwen3", base, max_position_embeddings=512)
    assert "lacks the special token" in refused(tmp_path, BASE)
    files = trained_tokenizer()
    for name, content in files.items():
        (base / name).write_bytes(content)
    assert read(tmp_path, BASE).recipe.base == "start"
    assert "exceeds the 16 of" in refused_with(base, tmp_path, max_position_embeddings=16)
    assert "do not belong together" in refused_with(base, tmp_path, vocab_size=64)
    (base / "model.safetensors").unlink()
    assert "has neither model.safetensors nor" in refused(tmp_path, BASE)


def refused_with(base: Path, folder: Path, **keys: int) -> str:
    """The sentence for a base whose config.json says otherwise."""
    before = (base / "config.json").read_text()
    (base / "config.json").write_text(json.dumps(json.loads(before) | keys))
    sentence = refused(folder, BASE)
    (base / "config.json").write_text(before)
    return sentence


def trained_tokenizer() -> dict[str, bytes]:
    from forethought.training.tokenizer import train_tokenizer

    return dict(train_tokenizer(["the cat sat on the mat"] * 4, 300).files)


def test_a_base_excludes_a_tokenizer(tmp_path: Path) -> None:
    text = BASE + "\n[tokenizer]\nvocab_size = 500\n"
    assert refused(tmp_path, text) == (
        "base and [tokenizer] exclude each other: base brings its own tokenizer; remove one of "
        "them."
    )


# -- packaging


def test_the_wheel_brings_the_recipes(tmp_path: Path) -> None:
    repository = Path(__file__).parents[2]
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=repository, check=True, env=dict(os.environ))
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "forethought/recipes/reading.py" in names
    for name in reading.bundled_recipes():
        assert f"forethought/recipes/bundled/{name}.toml" in names
