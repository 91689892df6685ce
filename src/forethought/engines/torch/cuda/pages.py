"""Which pages of the cache are whose: a stack of free ones, and a count of holders for each.

A page holds `PAGE` tokens of one sequence, in every layer. The samples of a prompt share the pages
that the prompt fills; the last one, which it fills in part, each sample has a copy of. Page 0 is
nobody's: rows without a sample may write there.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

PAGE = 16
"""Tokens of a page: few, so that short prompts have whole pages to share."""
NOBODYS = 0


def pages_for(tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-tokens // PAGE)


class PagePool:
    """Accounts of ``pages`` pages, of which number 0 is never given out."""

    def __init__(self, pages: int) -> None:
        self._free: IntArray = np.arange(pages - 1, 0, -1, dtype=np.int64)
        self._count = len(self._free)
        self._holders: IntArray = np.zeros(pages, dtype=np.int64)

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return self._count

    def take(self, count: int) -> IntArray:
        """So many pages, each with one holder. ValueError where there are fewer."""
        if count > self._count:
            raise ValueError(f"{count} pages wanted, {self._count} are free")
        self._count -= count
        taken = self._free[self._count : self._count + count][::-1].copy()
        self._holders[taken] = 1
        return taken

    def share(self, pages: IntArray, holders: int = 1) -> None:
        """So many more holders of each of the pages, which are distinct."""
        self._holders[pages] += holders

    def drop(self, pages: IntArray) -> None:
        """One holder less of each; pages without one are free. They may be named several times."""
        np.subtract.at(self._holders, pages, 1)
        gone = np.unique(pages[self._holders[pages] == 0])
        self._free[self._count : self._count + len(gone)] = gone
        self._count += len(gone)
