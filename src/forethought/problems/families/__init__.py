"""The bundled problem families, one file each; `forethought.problems.registry` finds them."""
