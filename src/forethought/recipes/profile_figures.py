"""The figures of a profile: what was spent, as shares and rates, as JSON and as plain text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Final, get_args

from forethought.engines.phases import PhaseName
from forethought.recipes.ceilings import Ceilings
from forethought.recipes.phase_clock import Spent

_COLUMNS: Final = (
    ("seconds", 9),
    ("share", 8),
    ("calls", 9),
    ("FLOP", 9),
    ("FLOP/s", 9),
    ("of max", 8),
    ("bytes", 9),
    ("B/s", 9),
    ("of max", 8),
)
_NAMES: Final = 20
_OTHER: Final = "other"


@dataclass(frozen=True, slots=True)
class Rate:
    """An amount of work (FLOPs or bytes), what that is a second, and as a share of the most."""

    amount: float
    per_second: float
    share_of_most: float

    @classmethod
    def of(cls, amount: float, seconds: float, most: float) -> Rate:
        return cls(amount, _over(amount, seconds), _over(amount, seconds * most))


@dataclass(frozen=True, slots=True)
class PhaseFigures:
    """``seconds``: of all threads together. ``share``: of the section's time, as the thread that
    drives the run saw it: shares add up to 1."""

    seconds: float
    share: float
    calls: int
    flops: Rate
    bytes: Rate


@dataclass(frozen=True, slots=True)
class SectionFigures:
    """The steps of a stage, or its evaluations (``part``), of which there were ``count``.
    ``first_seconds``: what the first of them took; ``other_*``: what no phase covers."""

    stage: str
    part: str
    count: int
    seconds: float
    first_seconds: float
    phases: Mapping[str, PhaseFigures]
    other_seconds: float
    other_share: float

    @classmethod
    def of(
        cls,
        stage: str,
        part: str,
        seconds: list[float],
        spent: Mapping[PhaseName, Spent],
        most: Ceilings,
    ) -> SectionFigures:
        """``seconds``: of each step or evaluation."""
        whole = sum(seconds)
        # Events of a device and the host's clock may differ by a little.
        other = max(0.0, whole - sum(one.own for one in spent.values()))
        return cls(
            stage,
            part,
            len(seconds),
            whole,
            seconds[0],
            {
                name: PhaseFigures(
                    spent[name].seconds,
                    _over(spent[name].own, whole),
                    spent[name].calls,
                    Rate.of(spent[name].cost.flops, spent[name].seconds, most.flops),
                    Rate.of(spent[name].cost.bytes, spent[name].seconds, most.bytes),
                )
                for name in get_args(PhaseName)
                if name in spent
            },
            other,
            _over(other, whole),
        )

    def lines(self) -> Iterator[str]:
        first = f", the first {self.first_seconds:.3g} s" if self.count > 1 else ""
        part = self.part.removesuffix("s") if self.count == 1 else self.part
        yield f"{self.stage}, {self.count} {part}, {self.seconds:.3g} s{first}"
        yield _row("phase", [name for name, _ in _COLUMNS])
        for name, phase in self.phases.items():
            cells = [f"{phase.seconds:.3f}", f"{phase.share:.1%}", f"{phase.calls:,}"]
            for rate in (phase.flops, phase.bytes):
                if rate.amount:
                    cells += [_si(rate.amount), _si(rate.per_second), f"{rate.share_of_most:.1%}"]
                else:
                    cells += ["-", "-", "-"]
            yield _row(name, cells)
        yield _row(_OTHER, [f"{self.other_seconds:.3f}", f"{self.other_share:.1%}"])


@dataclass(frozen=True, slots=True)
class ProfileFigures:
    """All of it. ``seconds``: from the beginning of the run in this process to its end.
    ``processes``: how many compute the run together, of which this is the first.
    ``traced_steps`` were computed under the trace and are in no section."""

    recipe: str
    hardware: str
    device: str
    dtype: str
    threads: int
    lanes: int
    processes: int
    torch: str
    ceilings: Ceilings
    seconds: float
    sections: tuple[SectionFigures, ...]
    traced_steps: int
    traces: tuple[str, ...]
    notes: tuple[str, ...]

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"

    def as_text(self) -> str:
        """A table for each section, and what has to be known to read them."""
        return "\n".join(line.rstrip() for line in self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        threads = f", {_counted(self.threads, 'thread')}" if self.device == "cpu" else ""
        lanes = f" in each of {self.lanes} lanes" if self.lanes > 1 else ""
        yield f"Where the time went: {self.recipe}, {self.seconds:.1f} s"
        yield f"{self.hardware}; {self.device}, {self.dtype}{threads}{lanes}, torch {self.torch}"
        most = self.ceilings
        yield (
            f"max, measured at the start: {_si(most.flops)}FLOP/s (products of {most.matrix} x "
            f"{most.matrix}), {_si(most.bytes)}B/s (copies of {most.buffer >> 20} MiB)"
        )
        for section in self.sections:
            yield ""
            yield from section.lines()
        yield ""
        left = self.seconds - sum(section.seconds for section in self.sections)
        yield f"{left:.1f} s are in no table: start, tokenizer, max, saved states, traces."
        if self.traced_steps:
            files = ", ".join(self.traces) or "no file"
            yield f"{_counted(self.traced_steps, 'step')} under the trace are not either: {files}."
        yield from self._notes()

    def _notes(self) -> Iterator[str]:
        yield "FLOP: the matrix products that the mathematics asks for. bytes: weights, gradients,"
        yield "cache, logits and the optimiser's state, each once; no activations. More than 100%"
        yield "of the bandwidth: what was read lay in the processor's own cache."
        if self.processes > 1:
            yield f"All of it is what the first of {self.processes} processes computed. What it"
            yield "waited for the others is in other, or in the phase in which it waited."
        if self.lanes > 1:
            yield f"Seconds of forward and backward are those of {self.lanes} threads added up;"
            yield "shares are of the first one's time. Rates and max are a lane's."
        if self.device != "cpu":
            yield "Phases are timed on the device; verdicts are the wait for the judging processes."
            yield "Decode and sampling are one graph, so they are counted together."
            yield "In 16 bits cross entropy makes the head's gradient on the way forward: its FLOP"
            yield "are counted in backward."
        yield from self.notes


def _row(name: str, cells: list[str]) -> str:
    columns = zip(cells, _COLUMNS, strict=False)
    return f"{name:{_NAMES}}" + "".join(f"{cell:>{width}}" for cell, (_, width) in columns)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _si(value: float) -> str:
    """Three digits and a prefix: "1.23 G"; a space behind a number without one, too."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if value < 999.5:
            return f"{value:.3g} {prefix}"
        value /= 1000
    return f"{value:.3g} E"


def _over(amount: float, whole: float) -> float:
    return amount / whole if whole else 0.0
