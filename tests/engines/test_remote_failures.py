"""Everything that goes wrong at a remote server: one sentence each, and never a second answer."""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from forethought.dialogue.messages import Message, Prompt
from forethought.engines.protocol import Event, Request
from forethought.engines.remote import RemoteEngine
from forethought.engines.remote_address import parse_address
from forethought.engines.remote_errors import retry_after_seconds
from forethought.errors import ForethoughtError, ServerError, UserError
from openai_server import (
    PING,
    Die,
    Hang,
    OpenAIServer,
    Reply,
    Sleep,
    chunk,
    error,
    event,
    fields,
    free_port,
    inline,
    json_reply,
    stream,
)

PROMPT = Prompt((Message("user", "Are tomatoes fruits?"),))


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORETHOUGHT_API_KEY", "OPENAI_API_KEY", "DEEPSEEK_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def fail(*replies: Reply, **engine: Any) -> tuple[ForethoughtError, list[Event], OpenAIServer]:
    """Ask a server that gives these replies; the error, what came before it, and the server."""
    with OpenAIServer(*replies) as server:
        remote = RemoteEngine(server.base_url, "m", backoff=0.01, **engine)
        events: list[Event] = []
        with pytest.raises(ForethoughtError) as info:
            events.extend(remote.submit(Request(PROMPT)))
    sentence = str(info.value)
    assert "\n" not in sentence
    assert sentence.endswith((".", "?"))
    return info.value, events, server


# -- dying


@pytest.mark.parametrize("chunked", [True, False], ids=["broken off", "just ended"])
def test_death_in_the_middle(chunked: bool) -> None:
    reply = stream([*fields(["Hmm"], ["Ye"]), Die()], chunked=chunked)
    collected: list[Event] = []
    with OpenAIServer(reply) as server:
        handle = RemoteEngine(server.base_url, "m", backoff=0.01).submit(Request(PROMPT))
        with pytest.raises(ServerError) as info:
            collected.extend(handle)
        assert [e.text for e in collected] == ["Hmm", "Ye"]  # type: ignore[union-attr]
        assert "3 characters of thought and 2 of answer had come" in str(info.value)
        assert info.value.exit_code == 1
        time.sleep(0.2)
        assert len(server.chats) == 1


@pytest.mark.parametrize("first", [PING, chunk({"content": "a"})], ids=["ping", "text"])
def test_no_retry_after_the_first_byte(first: bytes) -> None:
    problem, _, server = fail(Reply([first, Die()]), stream(inline("second answer")))
    assert isinstance(problem, ServerError)
    assert len(server.chats) == 1


def test_a_stream_that_just_ends_with_half_an_event() -> None:
    reply = Reply([chunk({"content": "a"}), b'data: {"choices":[{"del'], chunked=False)
    problem, _, _ = fail(reply)
    assert "1 characters of answer had come" in str(problem)


def test_an_empty_answer() -> None:
    problem, _, _ = fail(Reply([]))
    assert "no text had come" in str(problem)


def test_silence_in_the_middle() -> None:
    problem, _, server = fail(Reply([chunk({"content": "a"}), Hang()]), timeout=0.3)
    assert "silent for 0.3 s" in str(problem)
    assert server.hung_up.wait(1)


def test_pings_keep_a_silent_thought_alive() -> None:
    reply = stream([*[Sleep(0.2), PING] * 4, {"content": "Yes"}])
    with OpenAIServer(reply) as server:
        engine = RemoteEngine(server.base_url, "m", timeout=0.5)
        assert engine.submit(Request(PROMPT)).wait()[0].answer == "Yes"


def test_silence_before_the_first_byte_is_not_asked_again() -> None:
    problem, _, server = fail(Reply([], before=Hang()), timeout=0.3)
    assert "silent for 0.3 s" in str(problem)
    assert len(server.chats) == 1


# -- not the protocol


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/json"])
def test_html(kind: str) -> None:
    page = b"<!DOCTYPE html><html><body>\x1b[31mLog in</body></html>"
    problem, _, server = fail(Reply([page], content_type=kind))
    assert isinstance(problem, ServerError)
    assert f"{server.base_url}/chat/completions answered with {kind}" in str(problem)
    assert "Log in" not in str(problem)


@pytest.mark.parametrize(
    "reply",
    [
        Reply([b"hello"], content_type="text/plain"),
        Reply([b"{..."], content_type="application/json"),
        json_reply([1, 2]),
        json_reply({"hello": "there"}),
        Reply([event("not json")]),
        Reply([event([1])]),
        Reply([b"data: " + b"[" * 200_000 + b"\n\n"]),
    ],
)
def test_neither_json_nor_events(reply: Reply) -> None:
    problem, _, _ = fail(reply)
    assert isinstance(problem, ServerError)


def test_an_endless_event_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forethought.engines.remote_stream.SSEParser", lambda: _small_parser())
    problem, _, _ = fail(Reply([b"data: " + b"x" * 5000]))
    assert "cannot be read" in str(problem)


def _small_parser() -> Any:
    from forethought.engines.sse import SSEParser

    return SSEParser(max_event_bytes=1000)


# -- errors of the server


@pytest.mark.parametrize("payload", [
    {"error": {"message": "out of\x1b[2J memory", "code": 500}},
    {"error": "out of\n memory"},
    {"object": "error", "message": "out of memory"},
])  # fmt: skip
def test_an_error_in_the_middle(payload: Any) -> None:
    problem, _, _ = fail(Reply([chunk({"content": "a"}), event(payload)]))
    assert "reported an error in the middle: out of" in str(problem)
    assert "memory." in str(problem)
    assert "\x1b" not in str(problem)


@pytest.mark.parametrize(
    "data", [b'error: {"message": "boom"}\n\n', b"event: error\ndata: boom\n\n"]
)
def test_error_events(data: bytes) -> None:
    problem, _, _ = fail(Reply([data]))
    assert "reported an error: boom." in str(problem)


def test_an_error_with_status_200() -> None:
    problem, _, _ = fail(json_reply({"error": "Unexpected endpoint or method."}))
    assert "reported an error: Unexpected endpoint or method." in str(problem)


@pytest.mark.parametrize("reason", ["content_filter", "insufficient_system_resource"])
def test_a_finish_that_is_a_failure(reason: str) -> None:
    problem, _, _ = fail(stream(inline("a"), finish=reason))
    assert "gave up" in str(problem)


def test_http_errors() -> None:
    problem, _, _ = fail(error(400, "context of 4096 \x1b]0;x\x07 exceeded\u202e by 7"))
    assert "answered HTTP 400: context of 4096 ]0;x exceeded by 7." in str(problem)
    assert problem.exit_code == 1
    page = Reply([b"<html>" + b"x" * 200_000], status=500, content_type="text/html")
    problem, _, _ = fail(page)
    assert str(problem).endswith("answered HTTP 500: an HTML page, not an API message.")
    problem, _, _ = fail(Reply([], status=418, content_type=None))
    assert str(problem).endswith("answered HTTP 418.")


def test_a_missing_and_a_wrong_key() -> None:
    problem, _, _ = fail(error(401, "no key"))
    assert isinstance(problem, UserError)
    assert "wants an API key: set FORETHOUGHT_API_KEY (HTTP 401, no key)" in str(problem)
    problem, _, server = fail(error(401, "bad key sk-secret!"), api_key="sk-secret")
    assert "refused the API key" in str(problem)
    assert "sk-secret" not in str(problem)
    assert server.chats[0].headers["authorization"] == "Bearer sk-secret"


def test_a_redirect_is_not_followed() -> None:
    with OpenAIServer(stream(inline("stolen"))) as other:
        location = other.base_url + "/chat/completions"
        problem, _, _ = fail(
            Reply([], status=307, headers={"Location": location}), api_key="sk-secret"
        )
        assert f"redirects to {location} (HTTP 307)" in str(problem)
        assert not other.requests


# -- retries


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_passing_error_is_tried_again(status: int) -> None:
    with OpenAIServer(error(status, "later"), error(status, "later"), stream(inline("d"))) as http:
        engine = RemoteEngine(http.base_url, "m", backoff=0.01)
        assert engine.submit(Request(PROMPT)).wait()[0].answer == "d"
        assert len(http.chats) == 3


@pytest.mark.parametrize("status", [400, 404, 413, 501])
def test_a_lasting_error_is_not(status: int) -> None:
    assert len(fail(error(status, "never"))[2].chats) == 1


def test_three_tries() -> None:
    problem, _, server = fail(error(503, "Loading model"))
    assert "HTTP 503: Loading model." in str(problem)
    assert len(server.chats) == 3
    gaps = [b.at - a.at for a, b in pairwise(server.chats)]
    assert gaps[0] >= 0.01
    assert gaps[1] >= 0.02


def test_retry_after_is_obeyed() -> None:
    with OpenAIServer(error(429, "later", Retry_After="1"), stream(inline("d"))) as server:
        engine = RemoteEngine(server.base_url, "m", backoff=0.01)
        assert engine.submit(Request(PROMPT)).wait()[0].answer == "d"
        assert server.chats[1].at - server.chats[0].at >= 0.95


def test_a_long_retry_after_is_reported() -> None:
    problem, _, server = fail(error(429, "quota", Retry_After="3600"))
    assert "busy and asks to wait 3600 s (HTTP 429): quota." in str(problem)
    assert len(server.chats) == 1


def test_retry_after_as_a_date() -> None:
    assert retry_after_seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after_seconds("soon") is None
    assert retry_after_seconds(None) is None
    assert retry_after_seconds("9" * 400) is not None


def test_a_dropped_connection_before_the_answer_is_tried_again() -> None:
    with OpenAIServer(Reply(status=0), Reply(status=0), stream(inline("d"))) as server:
        engine = RemoteEngine(server.base_url, "m", backoff=0.01)
        assert engine.submit(Request(PROMPT)).wait()[0].answer == "d"


# -- unreachable


def test_nothing_listens() -> None:
    port = free_port()
    engine = RemoteEngine(f"http://127.0.0.1:{port}", "m", backoff=0.01)
    with pytest.raises(ServerError, match=f"nothing listens at 127.0.0.1:{port} .*start the"):
        engine.submit(Request(PROMPT)).wait()
    with pytest.raises(ServerError, match="nothing listens"):
        RemoteEngine(f"http://127.0.0.1:{port}")


def test_an_unknown_name() -> None:
    engine = RemoteEngine("http://no-such-host.invalid:80", "m", backoff=0.01)
    with pytest.raises(ServerError, match=r"no-such-host\.invalid"):
        engine.submit(Request(PROMPT)).wait()


def test_https_to_a_server_without_it() -> None:
    with OpenAIServer(stream(inline("d"))) as server:
        engine = RemoteEngine(f"https://127.0.0.1:{server.port}", "m", backoff=0.01)
        with pytest.raises(ServerError, match="TLS failed"):
            engine.submit(Request(PROMPT)).wait()


def test_proxies_in_the_environment_do_not_get_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = f"http://127.0.0.1:{free_port()}"
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with OpenAIServer(stream(inline("d"))) as server:
        engine = RemoteEngine(server.base_url, "m")
        assert engine.submit(Request(PROMPT)).wait()[0].answer == "d"


@pytest.mark.alone
def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams and cancels over TLS, and rejects a certificate nobody trusts."""
    import shutil
    import ssl

    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server = OpenAIServer(stream(inline("d")), stream([*inline("Ye"), Hang()]))
    server._http.socket = context.wrap_socket(server._http.socket, server_side=True)
    with server:
        url = f"https://127.0.0.1:{server.port}"
        engine = RemoteEngine(url, "m", backoff=0.01)
        with pytest.raises(ServerError, match="certificate is not trusted"):
            engine.submit(Request(PROMPT)).wait()
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        engine = RemoteEngine(url, "m", api_key="sk-x")
        assert engine.submit(Request(PROMPT)).wait()[0].answer == "d"
        handle = engine.submit(Request(PROMPT))
        next(iter(handle))
        start = time.monotonic()
        handle.cancel()
        assert time.monotonic() - start < 0.5
        assert handle.wait()[0].stop_reason == "cancelled"


# -- models


def test_the_only_model_is_taken() -> None:
    with OpenAIServer(stream(inline("d")), models=["qwen"]) as server:
        engine = RemoteEngine(f"http://127.0.0.1:{server.port}")
        assert engine.model == "qwen"
        engine.submit(Request(PROMPT)).wait()
        assert server.chats[0].body["model"] == "qwen"


def test_several_models_and_none() -> None:
    with OpenAIServer(models=["a", "b\x1b[1m"]) as server:
        with pytest.raises(UserError, match=r"2 models, name one after #: a, b \[1m\."):
            RemoteEngine(server.base_url)
        server.models = []
        with pytest.raises(UserError, match="no model loaded"):
            RemoteEngine(server.base_url)
        server.models = [f"m{i}" for i in range(50)]
        with pytest.raises(UserError, match=r"m19 and 30 more\."):
            RemoteEngine(server.base_url)


@pytest.mark.parametrize(
    "reply",
    [
        Reply([b"<html>"], content_type="text/html"),
        json_reply({"data": [1]}),
        json_reply([]),
        json_reply({"data": None}),
        Reply([b"x"], headers={"Content-Encoding": "gzip"}),
    ],
)
def test_a_list_of_models_that_is_none(reply: Reply) -> None:
    with (
        OpenAIServer(models=reply) as server,
        pytest.raises(ServerError, match="instead of a list of models"),
    ):
        RemoteEngine(server.base_url)


def test_models_that_need_a_key() -> None:
    with (
        OpenAIServer(models=error(401, "key")) as server,
        pytest.raises(UserError, match="FORETHOUGHT_API_KEY"),
    ):
        RemoteEngine(server.base_url)


@pytest.mark.parametrize(
    "reply",
    [error(404, "nope"), error(400, "The model `x` does not exist"), error(404, "model not found")],
)
def test_an_unknown_model_gets_the_nearest_names(reply: Reply) -> None:
    with OpenAIServer(reply, models=["deepseek-r1:7b", "qwen3:0.6b", "llama"]) as server:
        handle = RemoteEngine(server.base_url, "deepseek-r1:8b").submit(Request(PROMPT))
        with pytest.raises(
            UserError, match=r"no model 'deepseek-r1:8b'; nearest: deepseek-r1:7b\."
        ):
            handle.wait()


def test_a_404_that_is_not_about_the_model() -> None:
    problem, _, _ = fail(error(404, "page not found"))
    assert "does not exist there (HTTP 404): page not found." in str(problem)


# -- addresses and keys


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("http://127.0.0.1:1234", "http://127.0.0.1:1234/v1"),
        ("http://127.0.0.1:1234/", "http://127.0.0.1:1234/v1"),
        ("http://127.0.0.1:1234/v1/", "http://127.0.0.1:1234/v1"),
        ("http://127.0.0.1:1234/v1/chat/completions", "http://127.0.0.1:1234/v1"),
        ("https://example.org/api/v1", "https://example.org/api/v1"),
        ("https://example.org/v1beta/openai/", "https://example.org/v1beta/openai"),
        ("https://example.org/gateway", "https://example.org/gateway/v1"),
        ("http://[::1]:8080", "http://[::1]:8080/v1"),
    ],
)
def test_base_urls(given: str, base: str) -> None:
    assert parse_address(given).base_url == base
    RemoteEngine(given, "m").close()


@pytest.mark.parametrize(
    "bad",
    ["", "127.0.0.1:1234", "ftp://x/v1", "http://", "http://x:99999/v1", "http://u:sk-1@x/v1",
     "https://x/v1?key=sk-1", "https://x/v1#m", "http://[::1/v1", "http://exa mple/v1"],
)  # fmt: skip
def test_bad_addresses(bad: str) -> None:
    with pytest.raises(UserError) as info:
        RemoteEngine(bad, "m")
    assert "u:sk-1" not in str(info.value)


def test_which_key_goes_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    assert parse_address("https://api.openai.com").api_key == "sk-openai"
    for other in ("http://127.0.0.1:1", "https://example.org", "https://openai.com.example.org"):
        assert parse_address(other).api_key is None
    monkeypatch.setenv("FORETHOUGHT_API_KEY", "sk-own\n")
    assert parse_address("https://api.openai.com").api_key == "sk-own"
    assert parse_address("http://localhost:1").api_key == "sk-own"
    assert parse_address("https://example.org", "sk-arg").api_key == "sk-arg"
    assert "sk-own" not in repr(parse_address("https://example.org"))
    with pytest.raises(UserError, match="unencrypted"):
        parse_address("http://192.168.1.5:1234")
    monkeypatch.setenv("FORETHOUGHT_API_KEY", "sk-\nown")
    with pytest.raises(UserError, match="characters that no key has"):
        parse_address("https://example.org")
