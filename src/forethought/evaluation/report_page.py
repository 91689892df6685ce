"""The page of a report: one HTML file without script, that loads nothing from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping

from forethought.evaluation.report_film import film_html, film_of
from forethought.evaluation.report_plots import Picture
from forethought.evaluation.report_style import STYLE
from forethought.evaluation.report_summary import (
    SPIKE_FACTOR,
    SUSPICIOUS_ERRORS,
    Held,
    Peak,
    StageSummary,
    Summary,
    Trouble,
)
from forethought.evaluation.report_text import as_attribute, as_html
from forethought.evaluation.run_record import NOTE_ISOLATED, RunRecord

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)
_NOTHING = "–"
_MADE_WITH: Mapping[str, str] = {
    "forethought": "forethought",
    "commit": "commit",
    "torch": "torch",
    "python": "Python",
    "seed": "seed",
    "threads": "CPU threads",
    "device": "device",
    "machine": "machine",
    "cpu_capability": "CPU instructions",
    "started": "started",
    "recipe_digest": "digest of the recipe",
}
_UNSAFE = (
    "Other makers' verifiers ran without a sandbox: what a sample did to them is not known, and "
    "neither is what its score is worth."
)


def page_html(run: RunRecord, summary: Summary, pictures: Iterable[Picture]) -> str:
    """The whole page. The same run gives the same text."""
    title = as_html(f"{summary.recipe}: report of a training run")
    film = film_of(run.frames)
    missing = '<p class="quiet">No held-out evaluation has filmed its answers yet.</p>'
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>{title}</title><style>{STYLE}</style></head><body><main>",
        _head(summary),
        _reached(summary),
        '<section class="plots"><h2>The course of it</h2><div class="grid">',
        *(_figure(picture) for picture in pictures),
        "</div></section>",
        film_html(film) if film.moments else f"<section><h2>The film</h2>{missing}</section>",
        _families(summary),
        _trouble(summary.trouble, summary),
        _took(summary),
        _made_with(summary),
        _recipe(run.recipe),
        "</main></body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _head(summary: Summary) -> str:
    state = state_text(summary)
    facts = [state[0].upper() + state[1:], f"{summary.tokens:,} tokens"]
    if summary.seconds is not None:
        facts.append(duration(summary.seconds))
    if summary.parameters is not None:
        facts.append(f"{summary.parameters:,} parameters")
    unsafe = f"<p><strong>{_UNSAFE}</strong></p>" if _isolated(summary) is False else ""
    return (
        f"<header><h1>{as_html(summary.recipe)}</h1>"
        f'<p class="quiet">{as_html("; ".join(facts))}.</p>{unsafe}</header>'
    )


def _isolated(summary: Summary) -> bool | None:
    """Whether other makers' verifiers ran in a sandbox; None where there were none."""
    value = summary.identity.get(NOTE_ISOLATED)
    return value if isinstance(value, bool) else None


def state_text(summary: Summary) -> str:
    """``finished``, or where the run has got to."""
    if summary.finished:
        return "finished"
    newest = [stage for stage in summary.stages if stage.steps][-1:] or list(summary.stages[:1])
    return f"not finished, {newest[0].stage} at step {steps_text(newest[0])}"


# -- what it reached


def _reached(summary: Summary) -> str:
    first, last = summary.first, summary.last
    if first is None or last is None:
        return '<p class="quiet">There is no held-out evaluation yet.</p>'
    rows = [
        ("held-out pass@1", pass_at_1(first), pass_at_1(last)),
        ("right form", _share(first.reward_format), _share(last.reward_format)),
        ("thought, tokens", _number(first.thought_tokens), _number(last.thought_tokens)),
        ("reflection words", _number(first.reflection_words), _number(last.reflection_words)),
        ("truncated", _share(first.truncated), _share(last.truncated)),
    ]
    cards = "".join(
        f"<div><dt>{name}</dt><dd>"
        + (f"<span>{before}</span> → " if last != first else "")
        + f"<strong>{after}</strong></dd></div>"
        for name, before, after in rows
    )
    return (
        f'<dl class="reached">{cards}</dl><p class="quiet">From the first held-out evaluation '
        f"({_where(first)}) to the newest ({_where(last)}). ± is one standard error, over "
        "problems.</p>"
    )


def _families(summary: Summary) -> str:
    first, last = summary.first, summary.last
    if first is None or last is None or not last.families:
        return ""
    body = "".join(
        f'<tr><th scope="row">{as_html(name)}</th><td>{_share(first.families.get(name))}</td>'
        f"<td>{_share(value)}</td></tr>"
        for name, value in last.families.items()
    )
    return (
        "<section><h2>By family</h2><table><thead><tr><th>held-out pass@1</th>"
        f"<th>{_where(first)}</th><th>{_where(last)}</th></tr></thead><tbody>{body}"
        f'</tbody><tfoot><tr><th scope="row">all</th><td>{pass_at_1(first)}</td>'
        f"<td>{pass_at_1(last)}</td></tr></tfoot></table></section>"
    )


def _where(held: Held | Peak) -> str:
    return as_html(f"{held.stage}, step {held.step}")


# -- what went badly


def _trouble(trouble: Trouble, summary: Summary) -> str:
    said = "".join(f"<li>{sentence}</li>" for sentence in _sentences(trouble, summary))
    return f"<section><h2>What went badly</h2><ul>{said}</ul></section>"


def _sentences(trouble: Trouble, summary: Summary) -> Iterable[str]:
    kl = trouble.largest_kl_sampler_trainer
    if kl is not None:
        yield f"Largest KL(sampler, trainer): {kl.value:.2e} nats a token ({_where(kl)})."
    if trouble.group_steps:
        yield (
            f"Steps with dead groups: {trouble.dead_group_steps:,} of {trouble.group_steps:,}; "
            f"on average {_share(trouble.dead_groups)} of a step's groups were dead."
        )
    if trouble.truncated is not None and trouble.most_truncated is not None:
        worst = trouble.most_truncated
        yield (
            f"Truncated training samples: {_share(trouble.truncated)} on average, "
            f"{_share(worst.value)} at worst ({_where(worst)})."
        )
    spike = trouble.largest_spike
    yield (
        f"Spikes (a gradient norm over {SPIKE_FACTOR:g} times the median of the steps before): "
        + (
            "none."
            if spike is None
            else f"{trouble.spikes:,}, the largest {spike.value:.1f} times ({_where(spike)})."
        )
    )
    if trouble.below_best is not None and summary.best is not None:
        best = summary.best
        yield f"The newest pass@1 is below the best, {pass_at_1(best)} ({_where(best)})."
    if trouble.reward_up_test_down:
        yield (
            "Between evaluations in a row the mean reward of training rose while held-out pass@1 "
            f"fell by over {SUSPICIOUS_ERRORS:g} standard errors: {trouble.reward_up_test_down:,} "
            "times. The verifier may accept what is wrong: read the film."
        )
    if trouble.unscorable:
        yield f"Held-out samples whose verifier failed: {trouble.unscorable:,}."
    if not summary.finished:
        yield "The run is not finished: every figure here is of what is done."


# -- what it took


def _took(summary: Summary) -> str:
    body = "".join(
        f'<tr><th scope="row">{as_html(stage.stage)}</th><td>{steps_text(stage)}</td>'
        f"<td>{stage.tokens:,}</td><td>{duration(stage.seconds)}</td>"
        f"<td>{duration(stage.evaluation_seconds)}</td></tr>"
        for stage in summary.stages
    )
    return (
        "<section><h2>What it took</h2><table><thead><tr><th>stage</th><th>steps</th>"
        "<th>tokens</th><th>training</th><th>evaluations</th></tr></thead>"
        f'<tbody>{body}</tbody><tfoot><tr><th scope="row">all</th><td></td>'
        f"<td>{summary.tokens:,}</td>"
        f'<td colspan="2">{duration(summary.seconds)}</td></tr></tfoot></table></section>'
    )


def steps_text(stage: StageSummary) -> str:
    """``120 of 400``, or ``400`` when they are the same or nothing is planned."""
    if stage.planned is None or stage.planned == stage.steps:
        return f"{stage.steps:,}"
    return f"{stage.steps:,} of {stage.planned:,}"


def _made_with(summary: Summary) -> str:
    rows = [
        (name, summary.identity[key])
        for key, name in _MADE_WITH.items()
        if summary.identity.get(key) is not None
    ]
    isolated = _isolated(summary)
    if isolated is not None:
        rows.append(
            ("other makers' verifiers", "in a sandbox" if isolated else "without a sandbox")
        )
    if summary.parameters is not None:
        active = summary.active_parameters
        more = f", {active:,} active a token" if active != summary.parameters else ""
        rows.insert(0, ("parameters", f"{summary.parameters:,}{more}"))
    body = "".join(
        f'<tr><th scope="row">{name}</th><td><bdi>{as_html(str(value))}</bdi></td></tr>'
        for name, value in rows
    )
    return f'<section><h2>Made with</h2><table class="facts">{body}</table></section>'


def _recipe(recipe: str) -> str:
    if not recipe:
        return ""
    return (
        f'<section><details><summary>The recipe</summary><div class="recipe">{as_html(recipe)}'
        "</div></details></section>"
    )


# -- pictures and figures


def _figure(picture: Picture) -> str:
    plot = picture.plot
    name, caption = as_attribute(f"{plot.title}. {plot.caption}"), as_html(plot.caption)
    return (
        f'<figure id="{plot.name}"><h3>{as_html(plot.title)}</h3><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{_data(picture.dark)}">'
        f'<img src="{_data(picture.light)}" alt="{name}"></picture>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _data(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode('ascii')}"


def pass_at_1(held: Held) -> str:
    """``62.5 ± 1.5 %``."""
    if held.pass_at_1_stderr is None:
        return _share(held.pass_at_1)
    return f"{100 * held.pass_at_1:.1f} ± {100 * held.pass_at_1_stderr:.1f} %"


def _share(value: float | None) -> str:
    return _NOTHING if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:,.1f}"


def duration(seconds: float | None) -> str:
    """Seconds for people: 9.5 s, 3 min 20 s, 1 h 4 min."""
    if seconds is None:
        return _NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
