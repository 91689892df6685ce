"""From what a person writes after `-m` to a model that an engine can open."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from forethought.checkpoints import bundled, catalogue, names, store
from forethought.checkpoints.catalogue import Entry
from forethought.errors import UserError
from forethought.paths import expand

# The download machinery is imported only where something is downloaded: asking a model that is on
# disk must stay fast.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from forethought.checkpoints.download import Progress, Report
    from forethought.checkpoints.pull import Confirm


@dataclass(frozen=True)
class LocalFile:
    """A GGUF file on this disk."""

    path: Path


@dataclass(frozen=True)
class LocalFolder:
    """A Hugging Face folder (`config.json` and weights) on this disk."""

    path: Path


@dataclass(frozen=True)
class HubReference:
    """`hf://owner/repo`, with a file or a quantisation where one was named."""

    repo: str
    file: str | None = None
    quant: str | None = None


@dataclass(frozen=True)
class ServerReference:
    """An OpenAI-compatible server; `model` is what stood behind `#`."""

    url: str
    model: str | None = None


@dataclass(frozen=True)
class CatalogueReference:
    """A model of the catalogue, with a quantisation where one was named."""

    entry: Entry
    quant: str | None = None


Reference = LocalFile | LocalFolder | HubReference | ServerReference | CatalogueReference


@dataclass(frozen=True)
class DownloadPolicy:
    """May a missing model be downloaded? `confirm` is asked first where the answer is "ask"."""

    allow: Literal["no", "ask", "yes"] = "no"
    confirm: Confirm | None = None


@dataclass(frozen=True)
class ResolvedModel:
    """A model ready to open: a GGUF `file`, a Hugging Face `folder`, or a `server`.

    `path` is None for servers only; `entry` is the catalogue's where the model is in it.
    """

    kind: Literal["file", "folder", "server"]
    name: str
    path: Path | None = None
    url: str | None = None
    model: str | None = None
    entry: Entry | None = None
    quant: str | None = None


def parse_reference(text: str) -> Reference:
    """What `text` means. Every name is checked here. Raises UserError with a way out."""
    text = text.strip()
    if not text or "\0" in text or "\n" in text:
        raise UserError("The model's name is empty or has a line break: try nano.")
    lower = text.lower()
    if lower.startswith(("http://", "https://")):
        return _server(text)
    if lower.startswith("hf://"):
        return _hub(text[len("hf://") :])
    if "://" in text:
        raise UserError(
            f"{text[:80]!r} is no kind of model that forethought knows: use a path, "
            "hf://owner/repo, http(s)://host/v1 or a name of `forethought models list`."
        )
    path = expand(text)
    looks_like_path = (
        lower.endswith(".gguf") or text.startswith((".", "~")) or "/" in text or os.sep in text
    )
    if looks_like_path or _exists(path):
        return _local(path)
    entry, quant = catalogue.match(text)
    return CatalogueReference(entry, quant)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name longer than the file system allows
        return False


def _local(path: Path) -> LocalFile | LocalFolder:
    try:
        if path.is_file():
            return LocalFile(path)
        if path.is_dir():
            if (path / "config.json").is_file():
                return LocalFolder(path)
            inside = sorted(item for item in path.glob("*.gguf"))
            if len(inside) == 1:
                return LocalFile(inside[0])
            raise UserError(
                f"{path} has neither a config.json nor exactly one GGUF file: give the path of a "
                "GGUF file or of a Hugging Face folder."
            )
    except OSError as error:
        raise UserError(f"{str(path)[:200]} cannot be read ({error.strerror}).") from None
    raise UserError(
        f"There is no file {path}: check the path, or use a name of `forethought models list`."
    )


def _hub(text: str) -> HubReference:
    repo, colon, choice = text.partition(":")
    names.check_repo(repo)
    if not colon:
        return HubReference(repo)
    if catalogue.is_quant(choice):
        return HubReference(repo, quant=choice.upper())
    names.check_file(choice)
    if not choice.lower().endswith(".gguf"):
        raise UserError(
            f"hf://{repo}:{choice} names neither a .gguf file nor a quantisation such as Q4_K_M: "
            "put one of them behind the colon."
        )
    return HubReference(repo, file=choice)


def _server(text: str) -> ServerReference:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise UserError(f"{text[:80]!r} is not an address: try http://127.0.0.1:1234/v1.") from None
    if not parts.hostname or port == 0:
        raise UserError(f"{text[:80]!r} names no host: try http://127.0.0.1:1234/v1#model.")
    if parts.username is not None or parts.password is not None:
        raise UserError(
            "A server's address must carry no password, since it is shown and kept: set "
            "FORETHOUGHT_API_KEY instead."
        )
    if parts.query:
        raise UserError(f"The address {text[:80]!r} has a query (?...): leave it out.")
    url = f"{parts.scheme.lower()}://{parts.netloc}{parts.path.rstrip('/')}"
    return ServerReference(url, unquote(parts.fragment) or None)


def resolve(
    reference: Reference | str,
    *,
    download: DownloadPolicy | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
    root: Path | None = None,
) -> ResolvedModel:
    """Find the model on disk, or download it where the policy allows.

    Raises UserError where it is missing and must not be downloaded, DownloadError where the
    download fails, ModelError where the model that comes with forethought is damaged.
    """
    if isinstance(reference, str):
        reference = parse_reference(reference)
    policy = download or DownloadPolicy()
    if isinstance(reference, LocalFile):
        return ResolvedModel("file", reference.path.stem, path=reference.path)
    if isinstance(reference, LocalFolder):
        name = reference.path.resolve().name
        return ResolvedModel("folder", name, path=reference.path)
    if isinstance(reference, ServerReference):
        name = reference.model or urlsplit(reference.url).netloc
        return ResolvedModel("server", name, url=reference.url, model=reference.model)
    if isinstance(reference, HubReference):
        return _from_hub(reference, policy, progress, report, root)
    entry, quant = reference.entry, reference.quant
    here = bundled.find(entry, quant) or store.find_installed(entry.name, quant, root=root)
    if here is not None:
        return ResolvedModel("file", entry.name, here.path, entry=entry, quant=here.quant)
    _may_download(entry.name, policy)
    from forethought.checkpoints.pull import pull

    confirm = policy.confirm if policy.allow == "ask" else None
    path = pull(entry, quant=quant, confirm=confirm, progress=progress, report=report, root=root)
    here = store.find_installed(entry.name, quant, root=root)
    return ResolvedModel(
        "file", entry.name, path, entry=entry, quant=here.quant if here is not None else quant
    )


def _from_hub(
    reference: HubReference,
    policy: DownloadPolicy,
    progress: Progress | None,
    report: Report | None,
    root: Path | None,
) -> ResolvedModel:
    entry = _entry_of(reference.repo)
    # A model that came by its catalogue name lies under that name.
    for name in [reference.repo, *([entry.name] if entry is not None else [])]:
        here = store.find_installed(name, reference.quant, reference.file, root)
        if here is not None and (name == reference.repo or reference.repo in here.source):
            return ResolvedModel("file", reference.repo, here.path, entry=entry, quant=here.quant)
    _may_download(f"hf://{reference.repo}", policy)
    from forethought.checkpoints.hub import quant_of
    from forethought.checkpoints.pull import pull_hub

    path = pull_hub(
        reference.repo,
        quant=reference.quant,
        file=reference.file,
        confirm=policy.confirm if policy.allow == "ask" else None,
        progress=progress,
        report=report,
        root=root,
    )
    return ResolvedModel("file", reference.repo, path, entry=entry, quant=quant_of(path.name))


def _entry_of(repo: str) -> Entry | None:
    """The catalogue's entry that has this repository as a source."""
    for entry in catalogue.catalogue().entries:
        for source in entry.sources:
            if isinstance(source, catalogue.HubSource) and source.repo.lower() == repo.lower():
                return entry
    return None


def _may_download(name: str, policy: DownloadPolicy) -> None:
    if policy.allow == "no" or (policy.allow == "ask" and policy.confirm is None):
        raise UserError(
            f"{name} is not on this disk, and downloading needs your word: run `forethought "
            f"models pull {name}`, or add --yes."
        )
