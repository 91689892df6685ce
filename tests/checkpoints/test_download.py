from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from forethought.checkpoints import redirects
from forethought.checkpoints.download import Wanted, download, may_send_token, part_path
from forethought.errors import DownloadError
from hub_server import COMMIT, HubServer

BODY = os.urandom(3_000_000)
SHA = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def served(hub: HubServer) -> HubServer:
    folder = hub.root / "org" / "repo"
    folder.mkdir(parents=True)
    (folder / "m.gguf").write_bytes(BODY)
    return hub


def wanted(hub: HubServer, **changes: object) -> Wanted:
    values: dict[str, object] = {
        "url": f"{hub.url}/org/repo/resolve/{COMMIT}/m.gguf",
        "base": hub.url,
        "sha256": SHA,
        "size": len(BODY),
    }
    return Wanted(**(values | changes))  # type: ignore[arg-type]


SCRIPT = """
import json, sys
from pathlib import Path
from forethought.checkpoints.download import Wanted, download
from forethought.errors import ForethoughtError
if sys.argv[3:]:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    download(Wanted(**json.loads(sys.argv[1])), Path(sys.argv[2]), back_off_s=0.05)
except ForethoughtError as error:
    print(error); sys.exit(error.exit_code)
except KeyboardInterrupt:
    sys.exit(130)
"""


def start(want: Wanted, target: Path, *extra: str) -> subprocess.Popen[str]:
    fields = {name: getattr(want, name) for name in ("url", "base", "sha256", "size", "token")}
    command = [sys.executable, "-c", SCRIPT, json.dumps(fields), str(target), *extra]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for_part(target: Path, least: int) -> int:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if part_path(target).exists() and part_path(target).stat().st_size >= least:
            return part_path(target).stat().st_size
        time.sleep(0.01)
    raise AssertionError("nothing arrived")


def leftovers(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def test_whole(served: HubServer, tmp_path: Path) -> None:
    target = tmp_path / "here" / "m.gguf"
    seen: list[tuple[int, int | None]] = []
    download(wanted(served), target, progress=lambda done, total: seen.append((done, total)))
    assert target.read_bytes() == BODY
    assert leftovers(target) == ["m.gguf"]
    assert seen[-1] == (len(BODY), len(BODY))
    count = len(served.requests)
    download(wanted(served), target)
    assert len(served.requests) == count


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_half_way_goes_on(served: HubServer, tmp_path: Path, how: signal.Signals) -> None:
    target = tmp_path / "here" / "m.gguf"
    served.faults.bytes_per_second = 1_000_000
    child = start(wanted(served), target)
    wait_for_part(target, 300_000)
    child.send_signal(how)
    child.wait()
    assert not target.exists()
    have = part_path(target).stat().st_size
    assert 0 < have < len(BODY)
    served.faults.bytes_per_second = 0
    second = start(wanted(served), target)
    assert second.wait() == 0
    assert served.ranges() == ["", f"bytes={have}-"]
    assert served.requests[-1].headers["if-range"].startswith('"')
    assert target.read_bytes() == BODY
    assert leftovers(target) == ["m.gguf"]


def test_changed_etag_starts_afresh(served: HubServer, tmp_path: Path) -> None:
    target = tmp_path / "here" / "m.gguf"
    served.faults.bytes_per_second = 1_000_000
    child = start(wanted(served), target)
    have = wait_for_part(target, 100_000)
    child.kill()
    child.wait()
    served.faults.bytes_per_second = 0
    served.faults.etag_suffix = "-new"
    download(wanted(served), target)
    assert served.ranges()[1].startswith("bytes=")
    assert have > 0
    assert target.read_bytes() == BODY


def test_part_of_another_file_is_thrown_away(served: HubServer, tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    part_path(target).write_bytes(b"other bytes")
    (tmp_path / "m.gguf.part.json").write_text(
        json.dumps({"url": "x", "etag": '"1"', "size": 5, "sha256": "0" * 64})
    )
    download(wanted(served), target)
    assert served.ranges() == [""]
    assert target.read_bytes() == BODY


def test_server_that_ignores_ranges(served: HubServer, tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    served.faults.ignore_range = True
    served.faults.drop_after = 1_000_000
    served.faults.drop_times = 1
    download(wanted(served), target, back_off_s=0.01)
    assert target.read_bytes() == BODY


def test_dropped_connections_are_continued(served: HubServer, tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    served.faults.drop_after = 400_000
    told: list[str] = []
    download(wanted(served), target, back_off_s=0.01, report=told.append)
    assert target.read_bytes() == BODY
    assert [item != "" for item in served.ranges()] == [False] + [True] * 7
    assert told


def test_busy_server(served: HubServer, tmp_path: Path) -> None:
    served.faults.status = 503
    served.faults.status_times = 2
    download(wanted(served), tmp_path / "m.gguf", back_off_s=0.01)
    served.faults.status_times = 100
    with pytest.raises(DownloadError, match="503"):
        download(wanted(served), tmp_path / "n.gguf", back_off_s=0.01, retries=2)


@pytest.mark.parametrize(("status", "words"), [(403, "HF_TOKEN"), (404, "404"), (401, "terms")])
def test_refusals(served: HubServer, tmp_path: Path, status: int, words: str) -> None:
    served.faults.status = status
    with pytest.raises(DownloadError, match=words):
        download(wanted(served), tmp_path / "m.gguf")
    assert len(served.ranges()) == 1


def test_wrong_hash(served: HubServer, tmp_path: Path) -> None:
    target = tmp_path / "here" / "m.gguf"
    served.faults.corrupt = True
    with pytest.raises(DownloadError, match="wrong content"):
        download(wanted(served), target)
    assert leftovers(target) == []


def test_too_long_an_answer(served: HubServer, tmp_path: Path) -> None:
    target = tmp_path / "here" / "m.gguf"
    with pytest.raises(DownloadError):
        download(wanted(served, size=1000), target, back_off_s=0.01, retries=1)
    assert not target.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_disk_full_while_writing(served: HubServer, tmp_path: Path) -> None:
    target = tmp_path / "here" / "m.gguf"
    child = start(wanted(served), target, "1000000")
    out, _ = child.communicate()
    assert child.returncode == 1
    assert "disk is full" in out
    assert not target.exists()
    download(wanted(served), target)
    assert target.read_bytes() == BODY


def test_disk_full_before(served: HubServer, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="disk is full"):
        download(wanted(served, size=1 << 60), tmp_path / "m.gguf")
    assert served.ranges() == []


def test_two_processes_one_download(served: HubServer, tmp_path: Path) -> None:
    target = tmp_path / "here" / "m.gguf"
    served.faults.bytes_per_second = 2_000_000
    first = start(wanted(served), target)
    wait_for_part(target, 1)
    told: list[str] = []
    download(wanted(served), target, report=told.append)
    assert first.wait() == 0
    assert told == ["Another process is writing m.gguf; waiting for it."]
    assert served.ranges() == [""]
    assert leftovers(target) == ["m.gguf"]


def test_threads_race(served: HubServer, tmp_path: Path) -> None:
    target = tmp_path / "here" / "m.gguf"
    threads = [threading.Thread(target=download, args=(wanted(served), target)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_bytes() == BODY
    assert served.ranges() == [""]


@pytest.mark.alone
def test_unreachable_is_quick(tmp_path: Path) -> None:
    want = Wanted("http://127.0.0.1:9/a/b", "http://127.0.0.1:9", None)
    begin = time.monotonic()
    with pytest.raises(DownloadError, match="check the network"):
        download(want, tmp_path / "m.gguf")
    assert time.monotonic() - begin < 4


def test_redirect_to_cdn(served: HubServer, tmp_path: Path) -> None:
    served.faults.redirect = True
    served.faults.drop_after = 1_000_000
    served.faults.drop_times = 1
    download(wanted(served, token="secret"), tmp_path / "m.gguf", back_off_s=0.01)
    assert (tmp_path / "m.gguf").read_bytes() == BODY
    paths = [request.path for request in served.requests]
    assert paths[1] == "/cdn/org/repo/m.gguf"
    assert served.requests[0].headers["authorization"] == "Bearer secret"


def test_token_stays_with_the_hub(served: HubServer, tmp_path: Path) -> None:
    with HubServer(served.root) as other:
        served.faults.redirect_to = f"{other.url}/cdn/org/repo/m.gguf"
        download(wanted(served, token="secret"), tmp_path / "m.gguf")
        assert "authorization" not in other.requests[0].headers
    assert not may_send_token("http://hub.example", "http://hub.example/x")
    assert may_send_token("https://hub.example", "https://hub.example/x")
    assert not may_send_token("https://hub.example", "https://hub.example:8443/x")


PRIVATE = [
    "10.0.0.1",
    "192.168.1.1",
    "172.16.0.1",
    "169.254.169.254",
    "127.0.0.1",
    "::1",
    "0.0.0.0",
]
PRIVATE += ["fe80::1", "fc00::1", "::ffff:10.0.0.1", "100.64.0.1", "224.0.0.1"]


@pytest.mark.parametrize("address", PRIVATE)
def test_redirects_to_private_addresses(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = "https://hub.example"
    monkeypatch.setattr(redirects, "resolve_host", lambda host, port: ["93.184.216.34", address])
    with pytest.raises(DownloadError, match="refused"):
        redirects.check_redirect(base, base, "https://cdn.example/x")
    with pytest.raises(DownloadError, match="refused"):
        redirects.check_peer(base, "https://cdn.example/x", (address, 443))


def test_redirect_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redirects, "resolve_host", lambda host, port: ["93.184.216.34"])
    base = "https://hub.example"
    redirects.check_redirect(base, base, "https://cdn.example/x")
    redirects.check_redirect(base, base, "https://hub.example/y")
    redirects.check_peer(base, "https://cdn.example/x", ("93.184.216.34", 443))
    for there in ("http://cdn.example/x", "https://localhost/x", "ftp://a/b", "file:///etc/passwd"):
        with pytest.raises(DownloadError):
            redirects.check_redirect(base, base, there)
    redirects.check_redirect("http://127.0.0.1:1", "http://127.0.0.1:1", "http://localhost:2/x")
    with pytest.raises(DownloadError):
        redirects.check_redirect("http://127.0.0.1:1", "http://127.0.0.1:1", "http://10.0.0.1/x")
