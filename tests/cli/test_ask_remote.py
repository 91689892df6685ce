"""``ask`` against servers: what they can do works, what they cannot is one sentence."""

from __future__ import annotations

import json

import pytest

from cli.conftest import Cli
from openai_server import Die, OpenAIServer, Reply, chunk, fields, free_port, inline, stream

ASK = ("ask", "Are tomatoes fruits?")


def test_thought_and_answer_apart(cli: Cli) -> None:
    with OpenAIServer(stream(fields(["Think", "ing."], ["Ye", "s."]))) as server:
        done = cli(*ASK, "-m", f"{server.base_url}#m")
        assert done.returncode == 0, done.stderr
        assert done.stdout == b"Yes.\n"
        assert b"Thinking." in done.stderr
        assert server.chats[0].body["messages"] == [
            {"role": "user", "content": "Are tomatoes fruits?"}
        ]
        assert server.chats[0].body["temperature"] == 0.6


def test_only_the_closing_tag_arrives_from_an_r1(cli: Cli) -> None:
    """What LM Studio and vLLM without a parser send for the distills."""
    with OpenAIServer(stream(inline("Hm", "m.\n</thi", "nk>\n\nYes."))) as server:
        done = cli(*ASK, "-m", f"{server.base_url}#deepseek-r1-distill-qwen-7b", "--json")
        assert done.returncode == 0, done.stderr
        reply = json.loads(done.stdout)
        assert (reply["thought"], reply["answer"]) == ("Hmm.", "Yes.")
        assert reply["model"] == "deepseek-r1-distill-qwen-7b"


def test_n_samples_from_a_server(cli: Cli) -> None:
    with OpenAIServer(stream(fields(["t"], ["a"]))) as server:
        done = cli(*ASK, "-m", f"{server.base_url}#m", "-n", "3", "--json", "--seed", "5")
        assert done.returncode == 0, done.stderr
        samples = json.loads(done.stdout)["samples"]
        assert [sample["answer"] for sample in samples] == ["a"] * 3
        assert sorted(chat.body["seed"] for chat in server.chats) == [5, 6, 7]


@pytest.mark.parametrize(
    "options",
    [
        ("--ids", "--json"),
        ("--raw-prompt",),
        ("--min-thought", "5"),
        ("--template", "r1"),
        ("--logprobs", "--json"),
        ("--reproducible",),
        ("--ctx", "100"),
        ("--gpu-layers", "3"),
        ("--lora", "x.gguf"),
        ("--device", "cpu"),
        ("--dtype", "bfloat16"),
        ("--speculate", "--temperature", "0"),
    ],
)
def test_limits_of_servers_are_said(cli: Cli, options: tuple[str, ...]) -> None:
    with OpenAIServer(stream(fields(["t"], ["a"]))) as server:
        done = cli(*ASK, "-m", f"{server.base_url}#m", *options)
        assert done.returncode == 2
        assert options[0].encode() in done.stderr
        assert done.stderr.count(b"\n") == 1
        assert done.stdout == b""
        assert server.chats == []


def test_an_unreachable_server(cli: Cli) -> None:
    port = free_port()
    done = cli(*ASK, "-m", f"http://127.0.0.1:{port}/v1#m")
    assert done.returncode == 1
    assert str(port).encode() in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_a_server_that_dies_mid_stream_keeps_what_came(cli: Cli) -> None:
    with OpenAIServer(Reply([chunk({"content": "Tomatoes are"}), Die()])) as server:
        done = cli(*ASK, "-m", f"{server.base_url}#m")
        assert done.returncode == 1
        assert done.stdout.startswith(b"Tomatoes are")
        assert b"Traceback" not in done.stderr


def test_a_server_that_sends_html(cli: Cli) -> None:
    page = Reply([b"<html><script>alert(1)</script></html>"], content_type="text/html")
    with OpenAIServer(page) as server:
        done = cli(*ASK, "-m", f"{server.base_url}#m")
        assert done.returncode == 1
        assert b"text/html" in done.stderr
        assert b"<script>" not in done.stderr + done.stdout


def test_what_one_wants_of_local_models_does_not_get_in_the_way(cli: Cli) -> None:
    with OpenAIServer(stream(fields(["t"], ["Yes."]))) as server:
        variables = {"FORETHOUGHT_DEVICE": "cpu", "FORETHOUGHT_DTYPE": "int8"}
        done = cli(*ASK, "-m", f"{server.base_url}#m", FORETHOUGHT_SPECULATE="1", **variables)
        assert done.returncode == 0, done.stderr
        assert done.stdout == b"Yes.\n"
