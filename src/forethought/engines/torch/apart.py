"""Work on a thread that ends with it, so that torch's helper threads end too.

On a CPU torch computes through OpenMP, whose runtime keeps a team of helpers for each thread that
ever asked for one. As soon as all teams together have more threads than the machine has cores, the
helpers no longer spin between two operations but sleep, and waking them costs more than a small
product: a decode step of a small model becomes half as slow again.
A team goes when its thread does. So whatever is done once (loading, laying out weights) is done
here, and steps have their own thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")


def apart(work: Callable[[], _Result]) -> _Result:
    """Run ``work`` on a thread of its own and wait for it; raises what it raised."""
    results: list[_Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # raised again below, in the thread that waits
            errors.append(error)

    thread = threading.Thread(target=run, name="forethought-apart", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
