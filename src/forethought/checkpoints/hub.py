"""What the hub says about a repository: its files, their sizes and their SHA-256.

Only metadata goes through huggingface_hub; the bytes are fetched by `download`, because that
library neither resumes after a kill nor checks the content (measured.md, "Hub downloads"). The
hub gets one try, with three seconds to connect.
"""

from __future__ import annotations

import os
import re
import socket
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from forethought.checkpoints import names, redirects
from forethought.checkpoints.download import CONNECT_TIMEOUT_S, may_send_token
from forethought.errors import DownloadError, UserError

DEFAULT_ENDPOINT = "https://huggingface.co"
DEFAULT_QUANT = "Q4_K_M"
_ANSWER_TIMEOUT_S = 30.0
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
# Not language models, though they are GGUF files.
_SIDE_FILES = re.compile(r"mmproj|imatrix|(^|[-_./])vocab([-_.]|$)", re.IGNORECASE)
_QUANT_IN_NAME = re.compile(
    r"(?:^|[-._/])(?P<quant>(?:UD-)?(?:I?Q\d[A-Z0-9_]*|TQ\d_\d|BF16|F16|F32|FP16|MXFP4[A-Z_]*|"
    r"NVFP4))(?=$|[-./])",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository. `size` in bytes; `sha256` in hex, None for small text files."""

    path: str
    size: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class HubRepo:
    """A repository at one commit."""

    repo: str
    commit: str
    files: tuple[HubFile, ...]
    license: str | None


@dataclass(frozen=True, slots=True)
class HubModel:
    """One GGUF model of a repository: one file, or the parts of a split one in order."""

    quant: str | None
    files: tuple[HubFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)


def endpoint() -> str:
    """The hub's address: `FORETHOUGHT_HUB`, else `HF_ENDPOINT`, else huggingface.co."""
    for name in ("FORETHOUGHT_HUB", "HF_ENDPOINT"):
        value = os.environ.get(name, "").strip().rstrip("/")
        if value:
            redirects.split(value)
            return value
    return DEFAULT_ENDPOINT


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() not in {"", "0", "false", "no", "off"}


def is_offline() -> str | None:
    """The variable that forbids asking the hub, or None."""
    for name in ("FORETHOUGHT_OFFLINE", "HF_HUB_OFFLINE"):
        if _is_set(name):
            return name
    return None


def token() -> str | None:
    """`HF_TOKEN`, or the token that huggingface_hub stored; None if there is none."""
    own = os.environ.get("HF_TOKEN", "").strip()
    if own:
        return own
    from huggingface_hub import get_token

    return get_token()


def file_url(base: str, repo: str, commit: str, path: str) -> str:
    """Where the bytes of a file are."""
    return f"{base}/{repo}/resolve/{quote(commit, safe='')}/{quote(path)}"


def _knock(base: str) -> None:
    """Connect and hang up: huggingface_hub itself would wait for minutes."""
    parts = redirects.split(base)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        return
    try:
        socket.create_connection(
            (parts.hostname or "", redirects.port_of(parts)), timeout=CONNECT_TIMEOUT_S
        ).close()
    except OSError as error:
        raise DownloadError(
            f"The hub {parts.hostname} cannot be reached ({error.strerror or error}): check the "
            "network, or give the path of a GGUF file."
        ) from None


def list_repo(repo: str, revision: str = "main") -> HubRepo:
    """The files of a repository. Raises DownloadError, UserError for a name that cannot be."""
    names.check_repo(repo)
    variable = is_offline()
    if variable is not None:
        raise DownloadError(
            f"{variable} is set, so {repo} is not looked up: unset it, or give the path of a GGUF "
            "file."
        )
    base = endpoint()
    _knock(base)
    # Read when huggingface_hub is imported: no telemetry, whatever else is set (rule R55).
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    from huggingface_hub import HfApi

    secret = token()
    api = HfApi(endpoint=base, token=secret if secret and may_send_token(base, base) else False)
    try:
        info = api.model_info(
            repo, revision=revision, files_metadata=True, timeout=_ANSWER_TIMEOUT_S
        )
    except Exception as error:
        raise _sentence(error, repo, revision) from error
    files: list[HubFile] = []
    for sibling in info.siblings or []:
        sha256 = sibling.lfs.sha256 if sibling.lfs is not None else None
        size = sibling.lfs.size if sibling.lfs is not None else sibling.size
        if sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256):
            sha256 = None
        files.append(HubFile(sibling.rfilename, size or 0, sha256))
    if not re.fullmatch(r"[0-9a-f]{40}", info.sha or ""):
        raise DownloadError(
            f"The hub's answer about {repo} names no commit: check FORETHOUGHT_HUB."
        )
    tags = [tag for tag in info.tags or [] if tag.startswith("license:")]
    license_name = tags[0].removeprefix("license:") if tags else None
    return HubRepo(repo, info.sha or "", tuple(files), license_name)


def _sentence(error: Exception, repo: str, revision: str) -> DownloadError:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return DownloadError(
            f"{repo} is gated: accept its terms on its page of the hub, and set HF_TOKEN to your "
            "token."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return DownloadError(f"{repo} has no revision {revision!r} on the hub: use 'main'.")
    if isinstance(error, errors.RepositoryNotFoundError):
        return DownloadError(
            f"There is no repository {repo} on the hub, or it is private: check the name, and set "
            "HF_TOKEN if it is private."
        )
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in {401, 403}:
            return DownloadError(
                f"The hub refuses {repo} ({status}): set HF_TOKEN to a token that may read it."
            )
        return DownloadError(
            f"The hub answered {status} about {repo}: try again later, or give a GGUF file."
        )
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return DownloadError(
        f"The hub's answer about {repo} made no sense or did not come ({reason}): check the "
        "network and try again."
    )


def quant_of(path: str) -> str | None:
    """The quantisation in a file's name or folder, e.g. `Q4_K_M` or `UD-Q2_K_XL`, in capitals."""
    stem = path[: -len(".gguf")] if path.lower().endswith(".gguf") else path
    found = [match["quant"].upper() for match in _QUANT_IN_NAME.finditer(stem)]
    return found[-1] if found else None


def models_of(files: Sequence[HubFile]) -> list[HubModel]:
    """The GGUF models among files; the parts of a split model are one, and must all be there."""
    whole: list[HubModel] = []
    split: dict[tuple[str, int], dict[int, HubFile]] = {}
    for file in files:
        if not file.path.lower().endswith(".gguf") or _SIDE_FILES.search(file.path):
            continue
        match = _SPLIT.fullmatch(file.path)
        if match is None:
            whole.append(HubModel(quant_of(file.path), (file,)))
        else:
            key = (match["stem"], int(match["count"]))
            split.setdefault(key, {})[int(match["number"])] = file
    for (stem, count), parts in split.items():
        if sorted(parts) == list(range(1, count + 1)):
            ordered = tuple(parts[number] for number in sorted(parts))
            whole.append(HubModel(quant_of(stem), ordered))
    return sorted(whole, key=lambda model: model.files[0].path)


def pick(repo: HubRepo, quant: str | None = None, file: str | None = None) -> HubModel:
    """The one model meant: by file, else by quantisation, else Q4_K_M, else the only one.

    Raises UserError with the choices where none or several fit.
    """
    models = models_of(repo.files)
    if not models:
        raise UserError(
            f"{repo.repo} has no GGUF files: choose a repository whose name ends in -GGUF."
        )
    if file is not None:
        for model in models:
            if any(file in {part.path, part.path.rsplit("/", 1)[-1]} for part in model.files):
                return model
        raise _choose(repo, models, f"has no file {file}")
    wanted = (quant or DEFAULT_QUANT).upper()
    fitting = [model for model in models if model.quant == wanted]
    if not fitting:
        fitting = [model for model in models if model.quant == f"UD-{wanted}"]
    if not fitting and quant is None and len(models) == 1:
        return models[0]
    if len(fitting) == 1:
        return fitting[0]
    problem = f"has several models of {wanted}" if fitting else f"has no {wanted}"
    raise _choose(repo, fitting or models, problem)


def _choose(repo: HubRepo, models: Sequence[HubModel], problem: str) -> UserError:
    choices = [model.quant or "" for model in models]
    if len(set(choices)) != len(choices) or "" in choices:
        choices = [model.files[0].path for model in models]
    listed = ", ".join(choices[:20]) + (", ..." if len(choices) > 20 else "")
    return UserError(f"{repo.repo} {problem}; choose one of {listed} (as hf://{repo.repo}:CHOICE).")
