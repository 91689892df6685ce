"""``forethought ask``: one question, the thought on stderr, the answer on stdout."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from forethought.cli import options
from forethought.cli.settings import (
    BY_NAME,
    MAX_SEED,
    Settings,
    Value,
    export_to_environment,
    load_settings,
)
from forethought.cli.settings import warn_unknown_variables as warn_unknown
from forethought.cli.terminal import print_json, require, show
from forethought.errors import UserError

if TYPE_CHECKING:
    from forethought.cli.loading import Loading
    from forethought.engines.model import AskOptions, Model
    from forethought.engines.protocol import Handle, Sample

_LOGPROBS = ("sampling", "raw")

LOCAL = ("context", "threads", "gpu_layers", "device", "dtype", "speculate")
"""Settings of a model on this machine. Each engine takes some of them, a server none."""
_TAKEN = {
    "llama.cpp": ("context", "threads", "gpu_layers"),
    "torch": ("context", "threads", "device", "dtype", "speculate"),
    "remote": (),
}


class Asked(NamedTuple):
    """What the command line said about one question, beyond the settings."""

    question: str | None
    file: str | None
    n: int
    seed: int | None
    stop: tuple[str, ...]
    lora: str | None
    logprobs: str | None
    as_json: bool
    ids: bool
    raw_prompt: bool
    yes: bool


def ask(
    question: Annotated[
        str | None,
        typer.Argument(
            help="The question. Text on stdin comes before it; - stands for stdin alone.",
            metavar="QUESTION",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("-f", "--file", help="Read the question from FILE.", metavar="FILE"),
    ] = None,
    system: options.System = None,
    template: options.Template = None,
    yes: options.Yes = False,
    model: options.Model = None,
    engine: options.Engine = None,
    ctx: options.Context = None,
    threads: options.Threads = None,
    gpu_layers: options.GpuLayers = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    speculate: options.Speculate = None,
    lora: options.Lora = None,
    max_thought: options.MaxThought = None,
    min_thought: options.MinThought = None,
    max_tokens: options.MaxTokens = None,
    stop: options.Stop = None,
    n: Annotated[
        int,
        typer.Option(
            "-n",
            "--samples",
            help="Sample this many answers.",
            metavar="N",
            rich_help_panel=options.SAMPLING,
        ),
    ] = 1,
    seed: options.Seed = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    reproducible: options.Reproducible = None,
    hide_thought: options.HideThought = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print one JSON object instead of the text.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    ids: Annotated[
        bool,
        typer.Option(
            "--ids",
            help="Add the token ids of prompt and continuation to the JSON.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    logprobs: Annotated[
        str | None,
        typer.Option(
            "--logprobs",
            help="Add log-probabilities to the JSON: under the sampling distribution, or with "
            "--logprobs raw under the model's own.",
            metavar="[raw]",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    raw_prompt: Annotated[
        bool,
        typer.Option(
            "--raw-prompt",
            help="Print the exact prompt that the model would read, and exit.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
) -> Callable[[], int]:
    """Ask one question.

    The thought streams on stderr and the answer goes to stdout, so a pipe gets the answer alone:

    \b
      forethought ask "Use 19, 36, 55 and 7 to make 65."
      forethought ask "Use 19, 36, 55 and 7 to make 65." | wc -w
      cat report.txt | forethought ask -m deepseek-r1:7b "Summarise this report."
      forethought ask -m deepseek-r1:7b -n 4 --json "How many primes are below 100?"

    Ctrl-C stops within a token and keeps what came. Exit codes: 0 done, 1 the model or a server
    failed, 2 the request was wrong, 130 interrupted.
    """
    flags: dict[str, Value] = {
        "model": model,
        "engine": engine,
        "context": ctx,
        "threads": threads,
        "gpu_layers": gpu_layers,
        "device": device,
        "dtype": dtype,
        "speculate": speculate,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "max_tokens": max_tokens,
        "max_thought": max_thought,
        "min_thought": min_thought,
        "system": system,
        "template": template,
        "hide_thought": hide_thought,
        "reproducible": reproducible,
    }
    asked = Asked(
        question, file, n, seed, tuple(stop or ()), lora, logprobs, as_json, ids, raw_prompt, yes
    )
    return lambda: run(flags, asked)


def run(flags: dict[str, Value], asked: Asked) -> int:
    """Answer one question; the exit code."""
    settings = load_settings(flags)
    _check(settings, asked)
    warn_unknown()
    export_to_environment(settings)
    from forethought.cli.question import read_question

    exact = settings.text("template") == "bare"
    question = read_question(asked.question, asked.file, exact=exact)
    loading = open_model(settings, lora=asked.lora, slots=asked.n, yes=asked.yes)
    # imported while the weights load
    import forethought.cli.display
    import forethought.cli.interrupt  # noqa: F401

    model = loading.wait()
    try:
        if asked.raw_prompt:
            code = _print_prompt(model, question, ask_options(settings))
            model.close()
            return code
        chosen = ask_options(settings)
        chosen["n"] = asked.n
        if asked.seed is not None:
            chosen["seed"] = asked.seed
        if asked.stop:
            chosen["stop"] = asked.stop
        if asked.logprobs is not None:
            chosen["logprobs"] = "raw" if asked.logprobs == "raw" else "sampling"
        code = _answer(model, question, chosen, settings, asked)
    except KeyboardInterrupt:
        raise  # closing would wait for the engine
    except BaseException:
        model.close()
        raise
    model.close()
    return code


def _check(settings: Settings, asked: Asked) -> None:
    """What is wrong with a command line, before anything is read or loaded."""
    require(asked.n >= 1, f"-n must be 1 or more, not {asked.n}.")
    if asked.seed is not None:
        require(
            0 <= asked.seed <= MAX_SEED,
            f"--seed must be from 0 to {MAX_SEED}, not {asked.seed}.",
        )
    require(all(asked.stop), "--stop must not be empty.")
    if asked.logprobs is not None:
        require(
            asked.logprobs in _LOGPROBS,
            f"--logprobs is sampling or raw, not {asked.logprobs!r}.",
        )
    require(
        asked.as_json or not (asked.ids or asked.logprobs),
        "--ids and --logprobs add to the JSON object: add --json too.",
    )
    if asked.raw_prompt:
        require(not asked.as_json, "--raw-prompt prints the prompt alone: leave out --json.")
    check_engine(settings, samples=asked.n)


def check_engine(settings: Settings, *, samples: int = 1) -> None:
    """Refuse an engine that this installation does not have, and what it cannot do."""
    if settings.switch("speculate") and settings.source("speculate") == "--speculate":
        require(samples == 1, f"--speculate works on one sample, not on {samples}: leave out -n.")
        require(
            settings.number("temperature") == 0,
            "--speculate gives greedy text, the likeliest token every time: add --temperature 0.",
        )
    if settings.text("engine") == "torch":
        from forethought.engines.load import require_torch

        require_torch()


def ask_options(settings: Settings) -> AskOptions:
    """What the settings say about a question; what nobody set is left to the model."""
    chosen: dict[str, Any] = {}
    for name in ("temperature", "top_p", "min_p"):
        chosen[name] = settings.number(name)
    for name in ("top_k", "max_tokens", "max_thought", "min_thought"):
        chosen[name] = settings.integer(name)
    chosen["reproducible"] = settings.switch("reproducible") or None
    chosen["system"] = settings.text("system")
    if settings.source("template") != "default":
        chosen["template"] = settings.text("template")
    given: AskOptions = {}
    given.update(
        {name: value for name, value in chosen.items() if value is not None}  # type: ignore[typeddict-item]
    )
    return given


def open_model(settings: Settings, *, lora: str | None, slots: int, yes: bool) -> Loading[Model]:
    """Begin to load the model of the settings, which is downloaded first where that is allowed."""
    from forethought.checkpoints.resolve import resolve
    from forethought.cli.fetching import permission
    from forethought.cli.loading import Loading
    from forethought.engines.load import load
    from forethought.paths import expand

    name = settings.text("model") or ""
    local = _local_options(settings, name)
    adapter = None if lora is None else expand(lora)
    policy, bar = permission(yes=yes)
    try:
        # here and not in load(): the person is asked, and may press Ctrl-C
        resolve(name, download=policy, progress=bar, report=_report)
    finally:
        if bar is not None:
            bar.close()
    return Loading(
        lambda: load(
            name,
            engine=settings.text("engine") or "auto",  # type: ignore[arg-type]  # of the table
            context=local.integer("context"),
            threads=local.integer("threads"),
            gpu_layers=local.integer("gpu_layers"),
            device=local.text("device"),
            dtype=local.text("dtype"),
            speculate=local.switch("speculate"),
            lora=adapter,
            slots=slots,
            reproducible=settings.switch("reproducible"),
            report=_report,
            api_key=settings.text("api_key"),
        )
    )


def engine_of(name: str, engine: str | None) -> str:
    """The engine that opens ``name``: what was asked for, or what `auto` comes to."""
    from forethought.checkpoints.resolve import LocalFolder, ServerReference, parse_reference

    reference = parse_reference(name)
    if isinstance(reference, ServerReference):
        return "remote"
    if engine == "torch" or isinstance(reference, LocalFolder):
        return "torch"
    return "llama.cpp"


def not_taken(engine: str) -> tuple[str, ...]:
    """Those of the LOCAL settings that this engine does not know."""
    return tuple(name for name in LOCAL if name not in _TAKEN[engine])


def _local_options(settings: Settings, name: str) -> Settings:
    """The LOCAL settings as the engine of this model takes them. What it does not know is an error
    only where it came by flag; the file and the variables hold what one wants of other models, and
    do not get in the way.
    """
    engine = engine_of(name, settings.text("engine"))
    whose = {
        "remote": f"the server {name}: it belongs to whoever runs the model",
        "torch": "the torch engine",
        "llama.cpp": "llama.cpp, only with --engine torch",
    }
    for key in not_taken(engine):
        flag = BY_NAME[key].flag
        require(
            settings.source(key) != flag or settings.is_off(key),
            f"{flag} is not possible with {whose[engine]}; leave it out.",
        )
    unknown = not_taken(engine)
    wanted = settings.switch("speculate") and settings.source("speculate") != "--speculate"
    if wanted and not has_mtp(name):
        unknown += ("speculate",)
    return settings.without(unknown)


def has_mtp(name: str) -> bool:
    """Whether the model brings an MTP module; only a folder can."""
    from forethought.checkpoints.resolve import LocalFolder, parse_reference

    reference = parse_reference(name)
    if not isinstance(reference, LocalFolder):
        return False
    from forethought.checkpoints.hf_config import read_config

    return bool(getattr(read_config(reference.path), "num_nextn_predict_layers", 0))


def _report(line: str) -> None:
    from forethought.cli.terminal import note

    note(f"forethought: {line}")


def _print_prompt(model: Model, question: str, chosen: AskOptions) -> int:
    prompt = model.prompt(question, **chosen)
    if prompt.text is None:
        raise UserError(
            f"--raw-prompt is not possible with {model.name}: a remote server renders the prompt "
            "itself; load the model locally instead."
        )
    # exact in a pipe; on a terminal neither the template nor a text from a pipe may drive it
    show(prompt.text)
    return 0


def _answer(
    model: Model, question: str, chosen: AskOptions, settings: Settings, asked: Asked
) -> int:
    from forethought.cli.display import Display
    from forethought.cli.interrupt import StopOnInterrupt

    if asked.ids and not model.engine.capabilities.token_ids:
        raise UserError(
            f"--ids is not possible with {model.name}: a remote server sends text, not token ids; "
            "load the model locally instead."
        )
    request = model.request(question, **chosen)
    display = Display(
        sys.stdout,
        sys.stderr,
        samples=asked.n,
        hide_thought=settings.switch("hide_thought"),
        quiet=asked.as_json,
        exact=settings.text("template") == "bare",
    )
    with StopOnInterrupt() as interrupt:
        handle = interrupt.watch(model.engine.submit(request))
        samples = _shown(display, handle, model, question)
    if asked.as_json:
        _print_json(model, samples, request.prompt.ids, asked)
    else:
        _last_line(display, samples, getattr(model.engine, "acceptance", None))
    return 130 if interrupt.happened else 0


def _shown(display: Any, handle: Handle, model: Model, question: str) -> list[Sample]:
    from forethought.cli.outside import note_outside

    try:
        note_outside(model, question)
        samples: list[Sample] = display.show(handle.batches())
    except BaseException:
        # a closed pipe, above all: nobody reads on, so nothing more may be computed
        handle.cancel()
        raise
    return samples


def _last_line(display: Any, samples: Sequence[Sample], accepted: float | None) -> None:
    from forethought.cli.display import summary_of

    if samples:
        drafts = "" if accepted is None else f" · {accepted:.0%} of drafts accepted"
        display.note(summary_of(list(samples)) + drafts)
    if any(sample.thought_end == "cut" and sample.stop_reason == "length" for sample in samples):
        display.note(
            "The tokens ran out inside the thought: raise --max-tokens, or lower --max-thought."
        )


def _print_json(
    model: Model, samples: Sequence[Sample], prompt_ids: Sequence[int] | None, asked: Asked
) -> None:
    from forethought.cli.sample_json import sample_object

    objects = [
        sample_object(
            sample,
            model.name,
            prompt_ids=prompt_ids,
            with_ids=asked.ids,
            with_logprobs=asked.logprobs is not None,
        )
        for sample in samples
    ]
    result: object = {"samples": objects} if asked.n > 1 else (objects[0] if objects else {})
    print_json(result)
