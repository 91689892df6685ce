"""A program without operations: what a sandbox starts with to be tested alone."""

OPS: dict[str, object] = {}
