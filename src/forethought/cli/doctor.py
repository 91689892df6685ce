"""``forethought doctor``: what is installed, what the machine has, and what is too old.

It opens no connection and loads no model; the file of the one that comes with forethought is
read and its hash compared. A floor is a version below which a known hole or a
missing function makes forethought unsafe or wrong; the table says which.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from forethought.cli import options
from forethought.cli.settings import (
    Settings,
    export_to_environment,
    load_settings,
    unknown_variables,
)
from forethought.cli.terminal import print_json, show


class Floor(NamedTuple):
    """A distribution we use. ``floor`` None: any version; ``required`` False: an extra."""

    name: str
    floor: str | None
    required: bool
    why: str


FLOORS: tuple[Floor, ...] = (
    Floor("xllamacpp", "2026.10.11549", True, "the capabilities that the engine was probed with"),
    Floor("jinja2", "3.1.6", True, "earlier sandboxes can be left (CVE-2025-27516)"),
    Floor("httpx", "0.28", True, "the interface the remote engine uses"),
    Floor("huggingface_hub", "1.0", True, "the interface the downloads use"),
    Floor("typer", "0.20", True, "the interface the command line uses"),
    Floor("rich", "14", True, "the interface the tables use"),
    Floor("prompt_toolkit", "3.0.50", True, "the interface the chat uses"),
    Floor("pydantic", "2.11", True, "the interface the configurations use"),
    Floor("torch", "2.11", False, "earlier ones are not tested"),
    Floor("numpy", "2", False, "earlier ones are not tested"),
    Floor("safetensors", "0.6", False, "earlier ones are not tested"),
    Floor("tokenizers", "0.22", False, "earlier ones are not tested"),
    Floor("gguf", "0.17", False, "earlier ones are not tested"),
    Floor("matplotlib", "3.10", False, "earlier ones are not tested"),
    Floor("math-verify", "0.9", False, "the guards around it are for what it accepts"),
    Floor("reasoning-gym", "0.1.25", False, "the guards around it are for what it accepts"),
    Floor("transformers", "5.3", False, "earlier ones load hostile checkpoints unsafely"),
    Floor("ray", None, False, "reported only"),
)
PYTHON_FLOOR = "3.11"
# Below it, two writers can damage a WAL database; we keep to one writer there, so it only warns.
SQLITE_FLOOR = "3.51.3"


def doctor(as_json: options.AsJson = False) -> Callable[[], int]:
    """Check this installation: versions, machine, default model.

    Exit code 1 where something is too old or damaged. Nothing is sent anywhere, and no model is
    loaded.
    """
    return lambda: run(as_json=as_json)


def run(*, as_json: bool) -> int:
    """Print the report; 1 if a floor is broken."""
    settings = load_settings()
    export_to_environment(settings)
    report = examine(settings)
    if as_json:
        print_json(report, indent=2, ascii_only=True)
    else:
        show(_as_text(report))
    return 0 if report["ok"] else 1


def examine(settings: Settings) -> dict[str, Any]:
    """The whole report as plain data."""
    checks = [_python(), *(_distribution(floor) for floor in FLOORS), _sqlite()]
    bundled = _bundled()
    return {
        "ok": all(check["ok"] for check in [*checks, bundled]),
        "forethought": _own_version(),
        "versions": checks,
        "llama_cpp": _llama_cpp_build(),
        "sandbox": _sandbox(),
        "machine": _machine(),
        "model": _default_model(settings),
        "bundled": bundled,
        "offline": settings.switch("offline"),
        "warnings": unknown_variables(os.environ),
    }


def _own_version() -> str:
    from forethought import __version__

    return __version__


def _check(
    name: str, version: str | None, floor: str | None, why: str, *, required: bool, warn: bool
) -> dict[str, Any]:
    below = version is not None and floor is not None and older(version, floor)
    missing = version is None and required
    return {
        "name": name,
        "version": version,
        "floor": floor,
        "ok": warn or not (below or missing),
        "note": why if below else ("not installed" if version is None else ""),
    }


def _distribution(entry: Floor) -> dict[str, Any]:
    from importlib import metadata

    try:
        # the version is read from its metadata: importing torch would take seconds
        version: str | None = metadata.version(entry.name)
    except metadata.PackageNotFoundError:
        version = None
    return _check(entry.name, version, entry.floor, entry.why, required=entry.required, warn=False)


def _python() -> dict[str, Any]:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return _check("python", version, PYTHON_FLOOR, "too old", required=True, warn=False)


def _sqlite() -> dict[str, Any]:
    import sqlite3

    return _check(
        "sqlite",
        sqlite3.sqlite_version,
        SQLITE_FLOOR,
        "only one process may write a database",
        required=False,
        warn=True,
    )


def older(version: str, floor: str) -> bool:
    """Whether ``version`` is below ``floor``, by the numbers at its start (2.11.0+cpu: 2, 11, 0).

    A pre-release of the floor counts as the floor: it has its interface.
    """
    have, want = _numbers(version), _numbers(floor)
    width = max(len(have), len(want))
    return have + [0] * (width - len(have)) < want + [0] * (width - len(want))


def _numbers(version: str) -> list[int]:
    import re

    leading = re.match(r"\d+(?:\.\d+)*", version)
    return [int(part) for part in leading[0].split(".")] if leading else []


def _llama_cpp_build() -> str | None:
    """What llama.cpp says about itself (CPU features); None where the wheel does not load."""
    try:
        import xllamacpp

        return " ".join(str(xllamacpp.get_system_info()).split())
    except Exception:  # a broken wheel is what doctor is there to report
        return None


def _sandbox() -> dict[str, Any]:
    """Whether other makers' graders can be isolated here: an empty worker tries to get out.

    No error where not: all else works without.
    """
    from forethought.errors import ForethoughtError
    from forethought.problems.sandbox import Sandbox
    from forethought.problems.sandbox_runner import bundled_program

    try:
        with Sandbox(bundled_program("nothing")):
            return {"isolates": True, "note": ""}
    except ForethoughtError as error:
        return {"isolates": False, "note": str(error)}


def _machine() -> dict[str, Any]:
    import platform
    import shutil

    from forethought.paths import models_dir

    folder = models_dir()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        free: int | None = shutil.disk_usage(folder).free
    except OSError:
        free = None
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu_cores": cores(),
        "memory_bytes": memory()[0],
        "memory_available_bytes": memory()[1],
        "disk_free_bytes": free,
    }


def cores() -> int:
    """CPU cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def memory() -> tuple[int | None, int | None]:
    """Bytes of memory, all of it and what is available; None where the system does not say."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, available = (
            int(fields[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable")
        )
    except (OSError, KeyError, ValueError):
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None
        except (AttributeError, OSError, ValueError):
            return None, None
    return total, available


def _default_model(settings: Settings) -> dict[str, Any]:
    from forethought.cli.on_disk import where_is

    return where_is(settings.text("model") or "")


def _bundled() -> dict[str, Any]:
    """Whether the model that comes with forethought is whole."""
    from forethought.checkpoints import bundled
    from forethought.checkpoints.catalogue import find
    from forethought.cli.settings import DEFAULT_MODEL
    from forethought.errors import ForethoughtError

    try:
        bundled.verify(find(DEFAULT_MODEL))
    except ForethoughtError as error:
        return {"name": DEFAULT_MODEL, "ok": False, "note": str(error)}
    return {"name": DEFAULT_MODEL, "ok": True, "note": ""}


def _as_text(report: dict[str, Any]) -> str:
    from forethought.cli.terminal import columns, size

    rows = [["forethought", report["forethought"], "", ""]]
    for check in report["versions"]:
        mark = "" if check["ok"] else "TOO OLD" if check["version"] else "MISSING"
        floor = f"needs {check['floor']}" if check["floor"] else ""
        rows.append([check["name"], check["version"] or "-", floor, mark or check["note"]])
    machine, model = report["machine"], report["model"]
    text = columns(rows) + "\n"
    available = machine["memory_available_bytes"]
    text += columns(
        [
            ["system", machine["system"]],
            ["CPU cores", str(machine["cpu_cores"])],
            ["memory", f"{size(machine['memory_bytes'])}, {size(available)} available"],
            ["disk", f"{size(machine['disk_free_bytes'])} free for models"],
            ["llama.cpp", report["llama_cpp"] or "does not load"],
            ["sandbox", "isolates" if report["sandbox"]["isolates"] else "none"],
            ["model", f"{model['name']}: {model['path'] or model['note']}"],
            [
                "bundled",
                f"{report['bundled']['name']}: whole" if report["bundled"]["ok"] else "DAMAGED",
            ],
            ["offline", "yes" if report["offline"] else "no"],
        ]
    )
    if report["sandbox"]["note"]:
        text += f"sandbox: {report['sandbox']['note']}\n"
    if report["bundled"]["note"]:
        text += f"bundled: {report['bundled']['note']}\n"
    for warning in report["warnings"]:
        text += f"warning: {warning}\n"
    return text + (
        "\nAll is well.\n"
        if report["ok"]
        else "\nSomething has to be upgraded or installed again.\n"
    )
