"""Every mistake ends in one sentence and exit code 2, before a model is loaded."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from .conftest import QUESTION, Cli, sentence


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ask"], ["no question"]),
        (["ask", ""], ["no question", "empty"]),
        (["ask", "  \n"], ["no question", "empty"]),
        (["ask", "hi", "--max-thought", "3", "--min-thought", "5"], ["--max-thought 3", "below"]),
        (["ask", "hi", "--max-tokens", "3", "--min-thought", "5"], ["--max-tokens 3", "below"]),
        (["ask", "hi", "--max-thought", "-1"], ["--max-thought", "0 or more", "-1"]),
        (["ask", "hi", "--min-thought", "-1"], ["--min-thought", "0 or more"]),
        (["ask", "hi", "--max-tokens", "0"], ["--max-tokens", "1 or more"]),
        (["ask", "hi", "-n", "0"], ["-n", "1 or more"]),
        (["ask", "hi", "-n", "two"], ["'two' is not a whole number"]),
        (["ask", "hi", "--temperature", "-0.1"], ["--temperature", "0 or more"]),
        (["ask", "hi", "--temperature", "nan"], ["--temperature", "nan"]),
        (["ask", "hi", "--top-p", "0"], ["--top-p", "above 0 and at most 1"]),
        (["ask", "hi", "--top-p", "1.01"], ["--top-p", "at most 1"]),
        (["ask", "hi", "--top-k", "-1"], ["--top-k", "0 or more"]),
        (["ask", "hi", "--min-p", "2"], ["--min-p", "from 0 to 1"]),
        (["ask", "hi", "--seed", "-1"], ["--seed", "-1"]),
        (["ask", "hi", "--ctx", "0"], ["--ctx", "1 or more"]),
        (["ask", "hi", "--threads", "0"], ["--threads", "1 or more"]),
        (["ask", "hi", "--threads", "99999999999"], ["--threads", "at most 512"]),
        (["ask", "hi", "--ctx", "2147483648"], ["--ctx", "at most 2147483647"]),
        (["ask", "hi", "--gpu-layers", "99999999999"], ["--gpu-layers", "at most 2147483647"]),
        (["ask", "hi", "--top-k", "99999999999"], ["--top-k", "at most 2147483647"]),
        (["ask", "hi", "--max-tokens", "99999999999"], ["--max-tokens", "at most 2147483647"]),
        (["ask", "hi", "--max-thought", "99999999999"], ["--max-thought", "at most"]),
        (["ask", "hi", "--min-thought", "99999999999"], ["--min-thought", "at most"]),
        (["ask", "hi", "--seed", "4294967295"], ["--seed", "4294967294"]),
        (["ask", "-f", "~nouser/q.txt"], ["~nouser/q.txt", "home folder ~nouser"]),
        (["ask", "hi", "-m", "~nouser/q.gguf"], ["~nouser/q.gguf", "home folder ~nouser"]),
        (["ask", "hi", "--lora", "~nouser/l.gguf"], ["~nouser/l.gguf", "home folder ~nouser"]),
        (["models", "show", "~nouser/q.gguf"], ["home folder ~nouser"]),
        (["chat", "--seed", "4294967295"], ["--seed", "4294967294"]),
        (["ask", "hi", "--stop", ""], ["--stop", "empty"]),
        (["ask", "hi", "--ids"], ["--ids", "--json"]),
        (["ask", "hi", "--logprobs"], ["--logprobs", "--json"]),
        (["ask", "hi", "--json", "--logprobs=cooked"], ["--logprobs", "'cooked'"]),
        (["ask", "hi", "--raw-prompt", "--json"], ["--raw-prompt", "--json"]),
        (["ask", "hi", "--template", "r1zero"], ["--template", "did you mean r1-zero?"]),
        (["ask", "hi", "--device", "gpu"], ["--device", "one of cpu, cuda, cuda:N", "'gpu'"]),
        (["ask", "hi", "--device", "cuda:-1"], ["--device", "cuda:N"]),
        (["ask", "hi", "--dtype", "float16"], ["--dtype", "float32, bfloat16, int8", "mean"]),
        (["ask", "hi", "--speculate"], ["--speculate", "--temperature 0"]),
        (["ask", "hi", "--speculate", "-t", "0", "-n", "2"], ["--speculate", "one sample"]),
        (["models", "export", "smollm2:135m", "x"], ["smollm2:135m", "not on this disk"]),
        (["models", "export", "hf://a/b", "x.gguf"], ["hf://a/b", "models pull hf://a/b"]),
        (["models", "export", "http://127.0.0.1:1/v1", "x"], ["is a server"]),
        (["models", "export", "./nothing", "x.gguf"], ["no file", "nothing"]),
        (["models", "export", ".", "x.gguf"], ["config.json"]),
        (["models", "export", "x", "y", "--quantize", "q5_1"], ["--quantize", "mean q5_0?"]),
        (["models", "export", "x", "y", "--dtype", "int8"], ["--dtype", "float16", "'int8'"]),
        (["models", "show", "smollm2:135m", "--params"], ["not on this disk"]),
        (["ask", "hi", "--engine", "llama"], ["--engine", "llama.cpp"]),
        (["ask", "hi", "--max-thougt", "5"], ["did you mean --max-thought?"]),
        (["ask", "hi", "--temperature"], ["--temperature", "requires an argument"]),
        (["ask", "hi", "there"], ["unexpected extra argument"]),
        (["ask", "hi", "-m", "smolm2"], ["'smolm2'", "smollm2:135m"]),
        (["ask", "hi", "-m", "./nothing.gguf"], ["no file", "nothing.gguf"]),
        (["ask", "hi", "-m", "ftp://x/y"], ["ftp://x/y"]),
        (["ask", "hi", "-m", "qwen3:0.6b"], ["qwen3:0.6b", "not on this disk", "--yes"]),
        (["ask", "-f", "nothing.txt"], ["-f nothing.txt", "no such file"]),
        (["ask", "-f", "."], ["-f .", "folder"]),
        (["aks", "hi"], ["'aks'", "'ask'"]),
        (["models", "shwo", "x"], ["'shwo'", "'show'"]),
        (["models", "show", "smolm2"], ["'smolm2'", "smollm2:135m"]),
        (["models", "rm", "qwen3:0.6b"], ["qwen3:0.6b"]),
        (["models", "pull", "http://127.0.0.1:1/v1"], ["is a server"]),
        (["chat", "--seed", "-4"], ["--seed"]),
        (["doctor", "--jsno"], ["did you mean --json?"]),
    ],
)
def test_a_mistake_is_said_in_one_sentence(arguments: list[str], said: list[str], cli: Cli) -> None:
    done = cli(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == b""
    text = sentence(done)
    for words in said:
        assert words in text


def test_a_home_of_nobody_is_said(cli: Cli) -> None:
    done = cli("paths", FORETHOUGHT_HOME="~nouser/x")
    assert done.returncode == 2
    assert "home folder ~nouser" in sentence(done)


def test_no_arguments_is_help(cli: Cli) -> None:
    for arguments in ([], ["models"]):
        done = cli(*arguments)
        assert done.stdout.startswith(b"Usage: forethought")
        assert done.stderr == b""


def test_text_that_is_not_utf8(cli: Cli, tmp_path: Path) -> None:
    done = cli("ask", stdin=b"Is \xff a letter?")
    assert done.returncode == 2
    assert "stdin is not UTF-8 text: byte 0xff at offset 3" in sentence(done)
    file = tmp_path / "question.txt"
    file.write_bytes(b"abc\xc3")
    done = cli("ask", "-f", str(file))
    assert done.returncode == 2
    assert "offset 3" in sentence(done)


@pytest.mark.skipif(os.name != "posix", reason="arguments are bytes on POSIX only")
def test_an_argument_that_is_not_utf8(cli: Cli) -> None:
    done = cli("ask", "ab" + os.fsdecode(b"\xff"))
    assert done.returncode == 2
    assert "offset 2" in sentence(done)


def test_a_question_of_a_megabyte_and_more(cli: Cli, tmp_path: Path) -> None:
    long = b"word " * 250_000
    file = tmp_path / "long.txt"
    file.write_bytes(long)
    for done in (cli("ask", stdin=long), cli("ask", "-f", str(file))):
        assert done.returncode == 2
        text = sentence(done)
        assert "at most 1 MiB" in text
        assert "context" in text
    assert "1.2 MB" in sentence(cli("ask", "-f", str(file)))


def test_a_question_beyond_the_context_says_by_how_many_tokens(ask: Cli) -> None:
    # an option that raises the context is named where it is one, and nowhere else
    done = ask(stdin=b"word " * 12_000)
    assert done.returncode == 2
    assert "was trained for: " in sentence(done)
    assert sentence(done).endswith(" too many; shorten it.\n")
    done = ask("--ctx", "64", stdin=b"word " * 200)
    assert done.returncode == 2
    assert sentence(done).endswith(" too many; shorten it or raise --ctx.\n")
    done = ask(QUESTION, "--max-tokens", "50000")
    assert done.returncode == 2
    assert sentence(done).endswith(" was trained for; lower --max-tokens.\n")
    done = ask(QUESTION, "--ctx", "64", "--max-tokens", "60")
    assert done.returncode == 2
    assert sentence(done).endswith(" the context of 64; lower --max-tokens or raise --ctx.\n")


def test_files_that_are_no_models(cli: Cli, tmp_path: Path, smollm2_path: Path) -> None:
    page = tmp_path / "page.gguf"
    page.write_text("<html>not found</html>")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(smollm2_path.read_bytes()[: 4 << 20])
    strange = tmp_path / "strange.gguf"
    name = b"general.architecture"
    strange.write_bytes(
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, len(name)) + name
        + struct.pack("<IQ", 8, 7) + b"newarch"
    )  # fmt: skip
    for file in (page, cut, strange):
        done = cli("ask", QUESTION, "-m", str(file))
        assert done.returncode in (1, 2), done.stderr
        assert file.name in sentence(done)
        assert done.stdout == b""


def test_a_server_that_is_not_there(cli: Cli) -> None:
    done = cli("ask", QUESTION, "-m", "http://127.0.0.1:9/v1#model")
    assert done.returncode == 1
    assert "127.0.0.1:9" in sentence(done)


def test_offline_with_nothing_on_disk(cli: Cli) -> None:
    done = cli("ask", QUESTION, "-m", "qwen3:0.6b", "--yes", FORETHOUGHT_OFFLINE="1")
    assert done.returncode == 1
    assert "FORETHOUGHT_OFFLINE" in sentence(done)


def test_an_unexpected_error_is_a_line_and_a_hint(cli: Cli, home: Path) -> None:
    (home / "config.toml").mkdir()  # a folder where a file should be is expected
    done = cli("ask", QUESTION)
    assert done.returncode == 2
    assert "config.toml cannot be read" in sentence(done)


def test_the_hint_shows_the_traceback(home: Path) -> None:
    from forethought.cli import main

    code = main._unexpected(RuntimeError("two\nlines"))
    assert code == 1


def test_a_file_without_a_telling_name_is_read_and_refused(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "README.md").write_text("# no model")
    monkeypatch.chdir(tmp_path)
    done = cli("ask", "hi", "-m", "README.md")
    assert done.returncode in (1, 2)
    assert "README.md" in sentence(done)
    assert "not a GGUF file" in sentence(done)


@pytest.mark.parametrize("name", ["a" * 300, "./" + "a" * 300])
def test_a_name_too_long_for_a_file(cli: Cli, name: str) -> None:
    done = cli("ask", "hi", "-m", name)
    assert done.returncode == 2
    assert "bug" not in sentence(done)
