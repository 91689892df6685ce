"""A file of a data set, from this disk or from the hub.

What comes from the hub lies under the data folder and is fetched once: a name that is there is
whole, since `download` gives it only when all bytes have arrived. The hub is not asked what the
bytes should be; whoever needs the same file everywhere gives its SHA-256, or a commit as revision.
"""

from __future__ import annotations

from pathlib import Path

from forethought import paths
from forethought.checkpoints import hub, names
from forethought.checkpoints.download import Progress, Report, Wanted, download, sha256_of
from forethought.errors import DownloadError, UserError

_SCHEME = "hf://"


def dataset_file(
    spec: str,
    *,
    revision: str = "main",
    sha256: str | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
    root: Path | None = None,
) -> Path:
    """The path of a data file: ``path/to/file``, or ``hf://owner/name/path/to/file`` on the hub.

    `root` is where files of the hub are kept (default: ``data`` in the data folder); `revision` is
    a branch, a tag or a commit there, `sha256` (hex) what the file must have. Raises UserError for
    a path that is not there and a name that cannot be, DownloadError for a failed download.
    """
    if not spec.startswith(_SCHEME):
        path = paths.expand(spec)
        if not path.is_file():
            raise UserError(
                f"There is no file {path}: give the path of a data file, or "
                f"{_SCHEME}OWNER/NAME/FILE for one on the hub."
            )
        return path
    owner, _, rest = spec.removeprefix(_SCHEME).partition("/")
    name, _, file = rest.partition("/")
    repo = names.check_repo(f"{owner}/{name}")
    names.check_file(file)
    names.check_part(revision, "The revision")
    root = root or paths.data_dir() / "data"
    target = names.inside(root, root / names.folder_name(repo) / revision / file)
    if target.is_file() and (sha256 is None or sha256_of(target) == sha256):
        return target
    variable = hub.is_offline()
    if variable is not None:
        raise DownloadError(
            f"{variable} is set, so {spec} is not fetched: unset it, or give the path of a file."
        )
    base = hub.endpoint()
    url = hub.file_url(base, f"datasets/{repo}", revision, file)
    wanted = Wanted(url=url, base=base, sha256=sha256, token=hub.token())
    return download(wanted, target, progress=progress, report=report)
