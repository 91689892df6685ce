"""Where a model is, if it is on this disk: no network, nothing loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forethought.errors import ForethoughtError

if TYPE_CHECKING:
    from forethought.checkpoints.resolve import CatalogueReference


def where_is(name: str) -> dict[str, Any]:
    """``name``, ``path`` (None where it is not on disk, or a server), size, source, and a note."""
    from forethought.checkpoints import bundled, resolve, store

    place: dict[str, Any] = {
        "name": name,
        "path": None,
        "size_bytes": None,
        "source": None,
        "sha256": None,
        "note": "",
    }
    try:
        found = resolve.resolve(name)
    except ForethoughtError as error:
        place["note"] = str(error)
        return place
    if found.path is None:
        place["note"] = f"a server at {found.url}"
        return place
    place |= {"name": found.name, "path": str(found.path)}
    if found.kind == "folder":
        place["size_bytes"] = sum(
            item.stat().st_size for item in found.path.iterdir() if item.is_file()
        )
    if found.kind == "file":
        place["size_bytes"] = found.path.stat().st_size
        own = None if found.entry is None else bundled.find(found.entry)
        for item in [own] if own is not None else store.list_installed():
            if item.path == found.path:
                place |= {
                    "size_bytes": item.size,
                    "source": item.source or None,
                    "sha256": item.sha256 or None,
                }
    return place


def in_catalogue(name: str) -> CatalogueReference | None:
    """What ``name`` means in the catalogue; None for a file, folder, server or mistake."""
    from forethought.checkpoints.resolve import CatalogueReference, parse_reference

    try:
        reference = parse_reference(name)
    except ForethoughtError:
        return None
    return reference if isinstance(reference, CatalogueReference) else None
