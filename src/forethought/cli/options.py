"""Options that several verbs share, so that one name means one thing everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

from forethought.cli.settings import about

MODEL = "Model"
SAMPLING = "Sampling"
THOUGHT = "Thought and length"
OUTPUT = "Output"

Model = Annotated[
    str | None,
    typer.Option("-m", "--model", help=about("model"), metavar="MODEL", rich_help_panel=MODEL),
]
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        help=about("engine"),
        metavar="auto|llama.cpp|torch|remote",
        rich_help_panel=MODEL,
    ),
]
Context = Annotated[
    int | None,
    typer.Option("--ctx", help=about("context"), metavar="N", rich_help_panel=MODEL),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", help=about("threads"), metavar="N", rich_help_panel=MODEL),
]
GpuLayers = Annotated[
    int | None,
    typer.Option("--gpu-layers", help=about("gpu_layers"), metavar="N", rich_help_panel=MODEL),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", help=about("device"), metavar="cpu|cuda|cuda:N", rich_help_panel=MODEL
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype", help=about("dtype"), metavar="float32|bfloat16|int8", rich_help_panel=MODEL
    ),
]
Speculate = Annotated[
    bool | None,
    typer.Option(
        "--speculate/--no-speculate",
        help=about("speculate"),
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
Lora = Annotated[
    str | None,
    typer.Option(
        "--lora", help="A LoRA adapter (GGUF) to apply.", metavar="FILE", rich_help_panel=MODEL
    ),
]
Yes = Annotated[
    bool,
    typer.Option("-y", "--yes", help="Download what is missing without asking."),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "-t", "--temperature", help=about("temperature"), metavar="X", rich_help_panel=SAMPLING
    ),
]
TopP = Annotated[
    float | None,
    typer.Option("--top-p", help=about("top_p"), metavar="X", rich_help_panel=SAMPLING),
]
TopK = Annotated[
    int | None,
    typer.Option("--top-k", help=about("top_k"), metavar="N", rich_help_panel=SAMPLING),
]
MinP = Annotated[
    float | None,
    typer.Option("--min-p", help=about("min_p"), metavar="X", rich_help_panel=SAMPLING),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        help="Seed of the randomness (default: a new one, which the output names).",
        metavar="N",
        rich_help_panel=SAMPLING,
    ),
]
Reproducible = Annotated[
    bool | None,
    typer.Option(
        "--reproducible/--no-reproducible",
        help=about("reproducible"),
        show_default=False,
        rich_help_panel=SAMPLING,
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop",
        help="End the answer before this text; may be given more than once.",
        metavar="TEXT",
        rich_help_panel=THOUGHT,
    ),
]
MaxThought = Annotated[
    int | None,
    typer.Option("--max-thought", help=about("max_thought"), metavar="N", rich_help_panel=THOUGHT),
]
MinThought = Annotated[
    int | None,
    typer.Option("--min-thought", help=about("min_thought"), metavar="N", rich_help_panel=THOUGHT),
]
MaxTokens = Annotated[
    int | None,
    typer.Option("--max-tokens", help=about("max_tokens"), metavar="N", rich_help_panel=THOUGHT),
]
System = Annotated[
    str | None,
    typer.Option("-s", "--system", help=about("system"), metavar="TEXT"),
]
Template = Annotated[
    str | None,
    typer.Option("--template", help=about("template"), metavar="model|r1|r1-zero|bare"),
]
HideThought = Annotated[
    bool | None,
    typer.Option(
        "--hide-thought/--show-thought",
        help=about("hide_thought"),
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=OUTPUT)]
