"""The report of a run: its figures, its page as a parser sees it, and what it refuses."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.synthetic_run import IDENTITY, SyntheticRun
from forethought.errors import ModelError, UserError
from forethought.evaluation.report import write_report
from forethought.evaluation.report_film import MOST_EVALUATIONS, film_of
from forethought.evaluation.report_page import POLICY, duration, page_html
from forethought.evaluation.report_plots import PLOTS, binned, draw, plots_of
from forethought.evaluation.report_summary import summarise
from forethought.evaluation.report_text import as_attribute, as_html
from forethought.evaluation.run_record import read_run

HOSTILE = (
    "</pre><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg/onload=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><style>*{display:none}</style>",
    "<!-- ]]> <![CDATA[ <?php -->",
    "&lt;script&gt; &#x3c;script&#x3e; &amp",
    "javascript:alert(1) data:text/html,<b>",
    "</div></article></section></main><base href=//e.vil><meta http-equiv=refresh content=0>",
    "abc\u202egpj.exe\u2066\u2069\u200b\ufeff\x1b[2J\x00\x07\r\u2028",
    "half \ud800 surrogate",
    "<think>one</think>two</think><answer><b>3</b></answer>",
)


class Page(HTMLParser):
    """Elements with their attributes, and the text in each class of element."""

    VOID = frozenset({"meta", "img", "source", "input"})

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        """Text, and the classes (else names) of the elements around it."""
        self._open: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert len(found) == len(attrs), f"an attribute twice in {tag}"
        self.elements.append((tag, found))
        if tag not in self.VOID:
            self._open.append((tag, found.get("class") or tag))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((tuple(name for _, name in self._open), data))

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [
            attributes
            for name, attributes in self.elements
            if name == tag and all(attributes.get(k) == v for k, v in wanted.items())
        ]

    def text(self, name: str) -> str:
        return "".join(data for around, data in self.texts if name in around)


def page_of(run: Path) -> Page:
    record = read_run(run)
    return Page(page_html(record, summarise(record), []))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SyntheticRun(tmp_path_factory.mktemp("run") / "tiny").make()


@pytest.fixture(scope="module")
def page(finished: Path) -> Page:
    return page_of(finished)


# -- the whole report


def test_everything_is_written(finished: Path, tmp_path: Path) -> None:
    found = write_report(finished, tmp_path / "new" / "folder")
    assert found.page == tmp_path / "new" / "folder" / "report.html"
    assert sorted(path.name for path in found.page.parent.iterdir()) == sorted(
        ["report.html", *(f"{plot.name}.png" for plot in PLOTS)]
    )
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in found.pictures)
    page = Page(found.page.read_text("utf-8"))
    pictures = [attributes["src"] or "" for attributes in page.all("img")] + [
        attributes["srcset"] or "" for attributes in page.all("source")
    ]
    assert len(pictures) == 2 * len(PLOTS)
    assert all(uri.startswith("data:image/svg+xml;base64,") for uri in pictures)
    assert all(attributes["alt"] for attributes in page.all("img"))


def test_the_page_loads_and_runs_nothing(page: Page) -> None:
    names = {tag for tag, _ in page.elements}
    assert names.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form", "svg"})
    assert page.elements[3] == (
        "meta", {"http-equiv": "Content-Security-Policy", "content": POLICY}
    )  # fmt: skip
    assert POLICY.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    for _, attributes in page.elements:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        assert (attributes.get("href") or "#").startswith("#")
    assert "url(" not in page.text("style")
    assert "@import" not in page.text("style")


def test_ids_are_unique_and_every_reference_has_one(page: Page) -> None:
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert set(ids.values()) == {1}
    inputs = {attributes["id"] for attributes in page.all("input")}
    assert {attributes["for"] for attributes in page.all("label")} <= inputs
    assert {(attributes["href"] or "")[1:] for attributes in page.all("a")} <= set(ids)


# -- hostile text


def hostile_run(path: Path, wrap: Callable[[str], str]) -> Path:
    """A run in which every text that somebody else wrote is hostile (or is what `wrap` says)."""
    run = SyntheticRun(path)
    run.make(stop_after=20)
    run.film.clear()
    for step, text in enumerate(HOSTILE):
        bad = wrap(text)
        fields = dict.fromkeys(("question", "reference", "family", "language"), bad)
        run.frame(0, "rl", step, bad, **fields)
    for line in (*run.metrics, *run.timings, *run.film):
        if line["stage"] == "rl":
            line["stage"] = wrap(HOSTILE[2] + HOSTILE[0])
    run.metrics[-1][f"pass_at_1/{wrap(HOSTILE[1])}"] = 0.5
    run.write(finished=False)
    identity = IDENTITY | {"recipe": wrap(HOSTILE[2]), "commit": wrap(HOSTILE[4])}
    (path / "run.json").write_text(json.dumps({"identity": identity}))
    (path / "recipe.toml").write_text(wrap(HOSTILE[0]))
    return path


def test_hostile_text_makes_no_element_and_no_attribute(tmp_path: Path) -> None:
    bad = page_of(hostile_run(tmp_path / "bad", lambda text: text))
    harmless = page_of(hostile_run(tmp_path / "good", lambda text: re.sub(r"[^\w/]", "-", text)))

    def shapes(page: Page) -> Counter[tuple[str, ...]]:
        # tags of a sample are elements of ours, spans stand for what is hidden
        return Counter(
            (tag, *sorted(attributes))
            for tag, attributes in page.elements
            if tag not in ("span", "div", "h4")
        )

    assert shapes(bad) == shapes(harmless)
    classes = {attributes.get("class") for attributes in bad.all("div")}
    assert classes <= {"grid", "wide", "question", "strip", "sample", "part", "tag", "thought",
                       "answer", "recipe", None}  # fmt: skip
    samples = bad.text("sample")
    for text in HOSTILE[:8]:
        assert text in samples
        assert text in bad.text("question") + samples
    assert HOSTILE[2] + HOSTILE[0] in bad.text("overview")
    assert HOSTILE[0] in bad.text("recipe")
    assert HOSTILE[2] in bad.text("h1")


def test_what_would_hide_or_reorder_is_spelled_out(tmp_path: Path) -> None:
    record = read_run(hostile_run(tmp_path / "bad", lambda text: text))
    html = page_html(record, summarise(record), [])
    html.encode("utf-8")
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]", html
    )
    samples = Page(html).text("sample")
    assert "abcU+202Egpj.exeU+2066U+2069U+200BU+FEFFU+001B[2JU+0000U+0007U+000DU+2028" in samples
    assert "half U+D800 surrogate" in samples


@given(st.text() | st.text(alphabet="<>&\"'/=!-\n\t\r\x00\u202e\u200f\ud800ab"))
def test_any_text_is_text(text: str) -> None:
    page = Page(f"<p>{as_html(text)}</p>")
    assert all(element == ("span", {"class": "hidden"}) for element in page.elements[1:])
    back = "".join(
        chr(int(data[2:], 16)) if "hidden" in around else data for around, data in page.texts
    )
    assert back == text


@given(st.text())
def test_any_text_is_an_attribute(text: str) -> None:
    [(tag, attributes)] = Page(f'<input title="{as_attribute(text)}">').elements
    assert (tag, set(attributes)) == ("input", {"title"})


# -- the film


def test_a_problem_is_paged_without_script(finished: Path, page: Page) -> None:
    film = film_of(read_run(finished).frames)
    moments, problems = len(film.moments), len(film.problems)
    assert (moments, problems, film.left_out) == (12, 6, 0)
    assert len(page.all("article")) == len(page.all("input")) == moments * problems
    # of each problem the newest frame is there at first
    chosen = [attributes["id"] for attributes in page.all("input") if "checked" in attributes]
    assert chosen == [f"p{number}f{moments - 1}" for number in range(problems)]
    # in the overview, in the strip, and to turn the page from both neighbours
    targets = Counter(attributes["for"] for attributes in page.all("label"))
    assert targets["p2f5"] == 4
    assert targets["p2f0"] == 3


def test_a_mark_is_more_than_a_colour(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run")
    run.make()
    run.film.clear()
    run.frame(0, "rl", 1, "<think>a</think>b", correct=True, tokens=9)
    run.frame(0, "rl", 2, "c", tokens=1)
    run.frame(0, "rl", 3, "<think>d", truncated=True, tokens=5)
    page = page_of(run.write(finished=True))
    marks = [
        (attributes["class"], attributes["title"])
        for attributes in page.all("label")
        if "title" in attributes
    ]
    assert marks[:3] == marks[3:] == [
        ("mark right", "rl, step 1: right, 9 tokens"),
        ("mark wrong", "rl, step 2: wrong, 1 token"),
        ("mark cut", "rl, step 3: cut off at the token limit, 5 tokens"),
    ]  # fmt: skip
    signs = [data for around, data in page.texts if around and around[-1].startswith("mark ")]
    assert signs == ["✓", "✗", "…"] * 3


def test_thought_and_answer_are_apart_and_their_tags_are_text(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run")
    run.make()
    run.film.clear()
    run.frame(0, "rl", 1, "<think>\nThree?\n</think>\n\n<answer>7</answer>")
    page = page_of(run.write(finished=True))
    assert page.text("thought") == "Three?"
    assert page.text("answer") == "<answer>7</answer>"
    tags = [data for around, data in page.texts if around and around[-1] == "tag"]
    assert tags == ["<think>", "</think>", "<answer>", "</answer>"]


def test_a_long_film_is_thinned_evenly_and_says_so(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run")
    run.make(stop_after=1)
    run.film.clear()
    for step in range(500):
        run.frame(0, "rl", step, "x" * 30_000)
    record = read_run(run.write(finished=False))
    film = film_of(record.frames)
    steps = [moment.step for moment in film.moments]
    assert len(steps) == MOST_EVALUATIONS
    assert (steps[0], steps[-1]) == (0, 499)
    gaps = {after - before for before, after in pairwise(steps)}
    assert gaps <= {10, 11}
    page = page_of(run.path)
    assert f"{500 - MOST_EVALUATIONS} more between them" in page.text("film")
    assert "10,000 more characters" in page.text("note")


def test_a_problem_may_be_missing_from_an_evaluation(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run")
    run.make()
    run.film.clear()
    run.frame(3, "rl", 1, "a")
    run.frame(5, "rl", 2, "b", correct=True)
    page = page_of(run.write(finished=True))
    assert [attributes["id"] for attributes in page.all("input")] == ["p3f0", "p5f1"]
    assert page.text("mark absent") == "··"


# -- figures


def test_the_summary_is_what_the_logs_say(finished: Path) -> None:
    summary = summarise(read_run(finished))
    assert (summary.recipe, summary.finished) == ("tiny", True)
    assert [(one.stage, one.steps, one.planned) for one in summary.stages] == [
        ("pretrain", 60, 60),
        ("rl", 100, 100),
    ]
    assert [one.tokens for one in summary.stages] == [60 * 16384, 100 * 24000]
    assert [one.seconds for one in summary.stages] == [30.0, 250.0]
    assert summary.seconds == 30 + 250 + 12 * 4
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    told = [line for line in lines if line["pass_at_1"] is not None]
    assert summary.first is not None
    assert summary.last is not None
    assert summary.first.pass_at_1 == told[0]["pass_at_1"]
    assert summary.last.pass_at_1_stderr == told[-1]["pass_at_1_stderr"]
    assert set(summary.last.families) == {"calendar_clock", "countdown", "linear_equations",
                                          "sorting"}  # fmt: skip
    trouble = summary.trouble
    kl = [line["kl_sampler_trainer"] or 0 for line in lines]
    assert trouble.largest_kl_sampler_trainer is not None
    assert trouble.largest_kl_sampler_trainer.value == max(kl)
    assert trouble.largest_kl_sampler_trainer.step == lines[kl.index(max(kl))]["step"]
    # 0.5 of the run: neither the share that falls nor the one that rises
    assert (trouble.dead_group_steps, trouble.group_steps) == (99, 100)
    assert (trouble.spikes, trouble.below_best) == (1, None)
    assert trouble.largest_spike is not None
    assert (trouble.largest_spike.stage, trouble.largest_spike.step) == ("pretrain", 30)
    json.dumps(summary.as_json(), allow_nan=False)


def test_bad_news_is_told(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run")
    run.make(stop_after=50)
    run.metrics[-1] |= {"pass_at_1": 0.01, "unscorable": 3}
    run.write(finished=False)
    text = page_of(run.path).text("li")
    for sentence in (
        "The newest pass@1 is below the best",
        "Held-out samples whose verifier failed: 3.",
        "The run is not finished",
        "Steps with dead groups: 49 of 50",
        "Truncated training samples",
        "the largest 8",
        "Largest KL(sampler, trainer)",
    ):
        assert sentence in text, text


@pytest.mark.parametrize(
    ("isolated", "told", "warned"),
    [(None, False, False), (True, True, False), (False, True, True)],
)
def test_whether_verifiers_ran_in_a_sandbox_is_told(
    tmp_path: Path, isolated: bool | None, told: bool, warned: bool
) -> None:
    """A run without isolation notes that in every line and every frame, too."""
    run = SyntheticRun(tmp_path / "run", rl=20)
    run.make()
    if isolated is False:
        for line in (*run.metrics, *run.film):
            line["isolated"] = False
        run.write(finished=True)
    path = tmp_path / "run" / "run.json"
    content = json.loads(path.read_text())
    content["identity"]["isolated"] = isolated
    path.write_text(json.dumps(content))
    page = page_of(run.path)
    assert ("other makers' verifiers" in page.text("facts")) == told
    assert ("without a sandbox" in page.text("facts")) == warned
    assert ("verifiers ran without a sandbox" in page.text("header")) == warned


def test_a_reward_that_rises_while_the_test_falls_is_told(tmp_path: Path) -> None:
    """From RL step 60 on a verifier is exploited: the reward goes on, held-out pass@1 collapses."""
    run = SyntheticRun(tmp_path / "run", rl=100, every=20)
    run.make()
    assert summarise(read_run(run.path)).trouble.reward_up_test_down == 0
    for line in run.metrics:
        if line["stage"] == "rl" and line["pass_at_1"] is not None and line["step"] > 60:
            line["pass_at_1"] = 0.5 if line["step"] == 80 else 0.2
    run.write(finished=True)
    assert summarise(read_run(run.path)).trouble.reward_up_test_down == 2
    assert "standard errors: 2 times." in page_of(run.path).text("li")


def test_the_page_says_what_the_run_was_made_with(page: Page) -> None:
    facts = page.text("facts")
    for key, value in IDENTITY.items():
        if key != "recipe":
            assert str(value) in facts
    assert "pretrain60" in page.text("tbody")
    assert 'kind = "rl"' in page.text("recipe")


def test_seconds_for_people() -> None:
    assert [duration(s) for s in (None, 0, 59.94, 200, 3840)] == [
        "–", "0.0 s", "59.9 s", "3 min 20 s", "1 h 4 min",
    ]  # fmt: skip


# -- the curves


def test_a_stage_has_a_plot_only_for_what_it_says(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run")
    record = read_run(run.one_step())
    assert [plot.name for plot in plots_of(record)] == ["loss"]
    assert draw(plots_of(record)[0], record).png.startswith(b"\x89PNG")


def test_the_same_run_gives_the_same_bytes_and_colours_follow_the_page(finished: Path) -> None:
    record = read_run(finished)
    [plot] = [plot for plot in PLOTS if plot.name == "kl_sampler_trainer"]
    first, second = draw(plot, record), draw(plot, record)
    assert first == second
    assert b"#c2571a" in first.light
    assert b"#c2571a" not in first.dark
    assert b"#e69f00" in first.dark
    assert b"script" not in first.light


def test_values_at_or_below_zero_do_not_end_a_log_axis(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run", pretrain=1, rl=4)
    run.make()
    values = iter([0.0, -1e-9, 3e-7, 3e-7])
    for line in run.metrics:
        if line["kl_sampler_trainer"] is not None:
            line["kl_sampler_trainer"] = next(values)
    record = read_run(run.write(finished=True))
    [plot] = [plot for plot in plots_of(record) if plot.log]
    draw(plot, record)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(1, 50))
def test_binning_keeps_extremes_and_the_mean(values: list[float], most: int) -> None:
    points = binned([float(at) for at in range(len(values))], values, most)
    assert 1 <= len(points) <= most
    assert min(point.low for point in points) == min(values)
    assert max(point.high for point in points) == max(values)
    assert all(point.low - 1e-3 <= point.y <= point.high + 1e-3 for point in points)
    assert [point.x for point in points] == sorted(point.x for point in points)


# -- runs that are not whole


def test_a_run_of_one_line_is_reported(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run")
    run.one_step()
    for name in ("film.jsonl", "timings.jsonl", "recipe.toml"):
        (run.path / name).unlink()
    summary = summarise(read_run(run.path))
    assert (summary.first, summary.seconds, summary.finished) == (None, None, False)
    page = page_of(run.path)
    assert "There is no held-out evaluation yet." in page.text("p") + page.text("quiet")
    assert "pretrain at step 1" in page.text("header")


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run")
    run.make(stop_after=10)
    whole = read_run(run.path)
    line = json.dumps(run.film[-4] | {"text": "把"}, ensure_ascii=False).encode()
    with (run.path / "film.jsonl").open("ab") as stream:
        stream.write(line[: line.index("把".encode()) + 1])  # half a character
    with (run.path / "metrics.jsonl").open("ab") as stream:
        stream.write(b'{"stage": "rl", "st')
    again = read_run(run.path)
    assert (again.frames, again.stages) == (whole.frames, whole.stages)
    assert "rl at step 10 of 100" in page_of(run.path).text("header")


@pytest.mark.parametrize(
    ("name", "line", "why"),
    [
        ("metrics", '{"stage": "rl", "step": 1, "loss": NaN}', "NaN is not JSON"),
        ("metrics", '{"stage": "rl", "step": 1, "loss": -Infinity}', "-Infinity is not JSON"),
        ("metrics", '{"stage": "rl", "step": 1, "loss": 1e999}', "loss is not finite"),
        ("metrics", '{"stage": "rl", "step": 1, "loss": 1' + "0" * 400 + "}", "loss is not finite"),
        ("metrics", '{"stage": "rl", "step": 1, "loss": "low"}', "loss is no number"),
        ("metrics", '{"stage": "rl", "step": 1, "loss": true}', "loss is no number"),
        ("metrics", '{"stage": "rl", "step": -1}', "no stage and step"),
        ("metrics", '{"step": 1}', "no stage and step"),
        ("metrics", "[1]", "no JSON object"),
        ("metrics", "", "Expecting value"),
        ("metrics", "[" * 100_000, "nested too deeply"),
        ("timings", '{"stage": "rl", "step": 1.5}', "no stage and step"),
        ("film", '{"stage": "rl", "step": 1, "number": 0}', "question is missing"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, name: str, line: str, why: str) -> None:
    run = SyntheticRun(tmp_path / "run")
    run.make(stop_after=1)
    path = run.path / f"{name}.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(UserError) as caught:
        read_run(run.path)
    assert str(caught.value).startswith(f"Line 1 of {path} is not what a run writes (")
    assert why in str(caught.value)


def test_what_is_no_run_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder: give"):
        read_run(tmp_path / "absent")
    with pytest.raises(UserError, match="holds no run: give"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="has no identity"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text('{"identity": {"seed": 1}}')
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be read"):
        read_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="has no line yet"):
        read_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(UserError, match="is not UTF-8"):
        read_run(tmp_path)


def test_a_folder_that_cannot_be_written_is_refused(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot be written to"):
        write_report(finished, tmp_path / "file")


def test_ten_thousand_lines_are_quick(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run", pretrain=5000, rl=5000, every=250)
    run.make()
    started = time.process_time()
    record = read_run(run.path)
    page_html(record, summarise(record), [])
    assert time.process_time() - started < 2
