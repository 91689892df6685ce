"""Sampling on the CPU: both local engines beside what they stand on, and beside transformers.

    python benchmarks/cpu_sampling.py [--runs 5] [--threads 2]

SmolLM2-135M (the GGUF of Q4_1; torch and transformers compute with its dequantised weights), 64 new
tokens for each of n = 1, 4, 16 samples of one prompt. All take turns round by round in one process.

- llama.cpp: ours beside the raw xllamacpp Server, same parameters and seeds; that both compute the
  same tokens is checked.
- torch, float32: ours beside `generate` of transformers, greedy (the same tokens: checked for
  n = 1) and with R1's sampling; and beside the matrix products alone, which are the ceiling: as
  torch computes them, with the weights stored transposed, and as our kernels compute them.
- torch, bfloat16 and int8, beside llama.cpp's Q4_1; what they cost in perplexity on a committed
  text (the weights of all are those of the Q4_1 file).
- one bucket for all (`reproducible`), and what each engine needs to start, in a process of its own.

Prints tables and ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F

import forethought as ft
from _machine import describe, save
from forethought.engines.llama_cpp import LlamaCppEngine
from forethought.engines.torch.apart import apart
from forethought.engines.torch.cache import RowCache
from forethought.engines.torch.engine import TorchEngine
from forethought.engines.torch.kernels import make_kernel

HERE = Path(__file__).parent
NEW_TOKENS = 64
SAMPLES = (1, 4, 16)
PROMPT = "Once upon a time, in a forest far away, there lived a fox who"
TEXT = HERE / "texts" / "lighthouse.txt"

# SmolLM2-135M: width, inner width, layers, vocabulary, outputs of q, k and v together.
D, INNER, LAYERS, VOCABULARY, QKV = 576, 1536, 30, 49152, 960
SHAPES = ((QKV, D), (D, D), (2 * INNER, D), (D, INNER))


def raw_llama(native: Any, ids: tuple[int, ...], n: int, seed: int) -> tuple[float, str]:
    """Seconds and text of the raw server's Python API."""
    texts: dict[int, list[str]] = {}

    def callback(chunk: Any) -> bool:
        choice = chunk["choices"][0]
        texts.setdefault(choice["index"], []).append(choice["text"])
        return False

    body: dict[str, Any] = {
        "prompt": list(ids),
        "n_predict": NEW_TOKENS,
        "stream": True,
        "seed": seed,
        "temperature": 0.6,
        "top_k": 0,
        "top_p": 0.95,
        "min_p": 0.0,
        "samplers": ["temperature", "top_k", "top_p", "min_p"],
    }
    if n > 1:
        body["n_cmpl"] = n
    started = time.perf_counter()
    native.handle_completions(body, callback)
    return time.perf_counter() - started, "".join(texts[0])


def ours(
    model: ft.Model, prompt: ft.Prompt, n: int, seed: int, **options: Any
) -> tuple[float, list[ft.Sample]]:
    """Seconds and samples of an engine, through the events a display consumes."""
    started = time.perf_counter()
    handle = model.submit(prompt, n=n, seed=seed, max_tokens=NEW_TOKENS, **options)
    for _batch in handle.batches():
        pass
    return time.perf_counter() - started, handle.wait()


def complete(samples: list[ft.Sample]) -> bool:
    """Whether no story ended early."""
    return all(sample.usage.completion_tokens == NEW_TOKENS for sample in samples)


class Transformers:
    """`generate` on the same weights, each call on a thread of its own: torch's helper threads end
    with it, so that neither side runs beside the other's (see engines/torch/apart.py)."""

    def __init__(self, gguf: Path, threads: int) -> None:
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self._threads = threads
        self.model = apart(
            lambda: transformers.AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32
            ).eval()
        )

    def __call__(self, ids: tuple[int, ...], n: int, seed: int, sample: bool) -> tuple[float, Any]:
        def generate() -> tuple[float, Any]:
            torch.set_num_threads(self._threads)
            torch.manual_seed(seed)
            prompt = torch.tensor([ids] * n)
            drawing: dict[str, Any] = (
                {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 0}
                if sample
                else {"do_sample": False}
            )
            started = time.perf_counter()
            with torch.inference_mode():
                out = self.model.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    max_new_tokens=NEW_TOKENS,
                    min_new_tokens=NEW_TOKENS,
                    pad_token_id=0,
                    **drawing,
                )
            return time.perf_counter() - started, out[0, len(ids) :].tolist()

        return apart(generate)


class Products:
    """A step's matrix products and nothing else, on random weights of the same shapes."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        shapes = [*(SHAPES * LAYERS), (VOCABULARY, D)]
        plain = [torch.randn(shape) for shape in shapes]
        transposed = [weight.t().contiguous() for weight in plain]
        self.kinds: dict[str, list[Callable[[torch.Tensor], torch.Tensor]]] = {
            "F.linear": [lambda x, w=w: F.linear(x, w) for w in plain],
            "transposed": [lambda x, w=w: torch.mm(x, w) for w in transposed],
            "our kernels": [make_kernel(w, None, "float32") for w in plain],
        }
        self._widths = [shape[1] for shape in shapes]

    def __call__(self, kind: str, n: int) -> float:
        """Seconds of one step, best of a few."""
        products = self.kinds[kind]

        def run() -> float:
            torch.set_num_threads(self._threads)
            inputs = {width: torch.randn(n, width) for width in (D, INNER)}
            best = math.inf
            with torch.inference_mode():
                for _ in range(6):
                    started = time.perf_counter()
                    for product, width in zip(products, self._widths, strict=True):
                        product(inputs[width])
                    best = min(best, time.perf_counter() - started)
            return best

        return apart(run)


def perplexity(model: ft.Model, ids: list[int]) -> float:
    """exp of the mean negative log-likelihood of the text's tokens after the first."""
    engine = model.engine
    assert isinstance(engine, TorchEngine)
    program = engine.program

    def compute() -> float:
        cache = RowCache(program.layers)
        cache.reserve(1, len(ids))
        with torch.inference_mode():
            cache.prefill(0, 0, len(ids))
            hidden = program.hidden(torch.tensor([ids]), torch.arange(len(ids))[None], cache)
            logits = program.logits(hidden[:-1]).float()
            return math.exp(F.cross_entropy(logits, torch.tensor(ids[1:])).item())

    return apart(compute)


def child(engine: str, dtype: str | None = None) -> dict[str, float]:
    """Start-up of one engine, median of three processes."""
    runs = []
    for _ in range(4):
        command = [sys.executable, str(HERE / "_one_engine.py"), repr(time.time()), engine]
        done = subprocess.run(
            [*command, *([dtype] if dtype else [])], capture_output=True, text=True, check=True
        )
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    del runs[0]  # warms the page cache
    return {key: round(statistics.median(run[key] for run in runs), 2) for key in runs[0]}


def speed(n: int, seconds: list[float]) -> float:
    """Tokens a second, by the median."""
    return round(n * NEW_TOKENS / statistics.median(seconds), 1)


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    threads = arguments.threads
    llama = ft.load("smollm2:135m", slots=16, threads=threads, context=512)
    assert isinstance(llama.engine, LlamaCppEngine)
    gguf = llama.engine.path
    native = llama.engine.server._native
    models = {
        dtype: ft.load("smollm2:135m", engine="torch", dtype=dtype, threads=threads, context=512)
        for dtype in ("float32", "bfloat16", "int8")
    }
    # Laid out apart: the main thread must own no helper threads of torch's.
    peer, products = Transformers(gguf, threads), apart(lambda: Products(threads))
    # "bare": every token is answer, so that nothing is forced and all compute the same
    prompt = llama.prompt(PROMPT, template="bare")
    assert prompt.ids is not None
    assert models["float32"].prompt(PROMPT, template="bare").ids == prompt.ids
    print(
        f"{describe()}, torch {torch.__version__}\n"
        f"SmolLM2-135M, {NEW_TOKENS} new tokens, {threads} threads, tokens/s, median of "
        f"{arguments.runs} rounds in turn\n"
    )
    rows = [
        measure(n, arguments.runs, prompt, native, llama, models, peer, products) for n in SAMPLES
    ]
    table(
        "llama.cpp Q4_1, temperature 0.6, top-p 0.95: ours beside the raw server",
        ("n", "raw", "ours", "ours / raw"),
        [(r["n"], r["llama_raw"], r["llama_ours"], r["llama_ratio"]) for r in rows],
    )
    table(
        "torch float32 beside transformers generate, the same weights",
        ("n", "peer greedy", "ours greedy", "ratio", "peer 0.6/0.95", "ours 0.6/0.95", "ratio"),
        [
            (r["n"], r["peer_greedy"], r["float32_greedy"], r["greedy_ratio"], r["peer_sampled"],
             r["float32"], r["sampled_ratio"])
            for r in rows
        ],
    )  # fmt: skip
    table(
        "torch float32, greedy, beside the products alone (tokens/s they allow; share reached)",
        ("n", "F.linear", "transposed", "our kernels", "of transposed", "of our kernels"),
        [
            (r["n"], r["F.linear"], r["transposed"], r["our kernels"], r["share_transposed"],
             r["share_kernels"])
            for r in rows
        ],
    )  # fmt: skip
    table(
        "smaller weights, temperature 0.6, top-p 0.95, and one bucket for all",
        ("n", "bfloat16", "int8", "int8 / raw llama.cpp Q4_1", "float32 reproducible"),
        [(r["n"], r["bfloat16"], r["int8"], r["int8_ratio"], r["reproducible"]) for r in rows],
    )
    tokenizer = models["float32"].engine.tokenizer
    assert tokenizer is not None
    ids = tokenizer.encode(TEXT.read_text(encoding="utf-8"), parse_special=False)
    ids = [0, *ids]  # the text begins a document
    perplexities = {dtype: round(perplexity(model, ids), 3) for dtype, model in models.items()}
    table(
        f"perplexity on {TEXT.name}, {len(ids)} tokens",
        ("weights", "perplexity", "against float32"),
        [
            (dtype, value, f"{value / perplexities['float32'] - 1:+.2%}")
            for dtype, value in perplexities.items()
        ],
    )
    for model in (llama, *models.values()):
        model.close()
    del peer, products
    starts = {
        "llama.cpp Q4_1": child("llama.cpp"),
        **{f"torch {dtype}": child("torch", dtype) for dtype in models},
    }
    table(
        "to start, in a process of its own",
        ("engine", "load s", "process start to first token s", "peak memory MiB"),
        [(name, r["load_s"], r["first_token_s"], r["peak_mib"]) for name, r in starts.items()],
    )
    save(
        "cpu_sampling",
        {
            "threads": threads,
            "runs": arguments.runs,
            "rows": rows,
            "perplexity": perplexities,
            "starts": starts,
        },
    )


def measure(
    n: int,
    runs: int,
    prompt: ft.Prompt,
    native: Any,
    llama: ft.Model,
    models: dict[str, ft.Model],
    peer: Transformers,
    products: Products,
) -> dict[str, float]:
    """All contenders in turn, one round to warm up and then ``runs``; medians."""
    seconds: dict[str, list[float]] = {}
    ids = cast(tuple[int, ...], prompt.ids)

    def keep(name: str, spent: float) -> None:
        seconds.setdefault(name, []).append(spent)

    seed = 0
    for turn in range(runs + 1):
        while True:  # until no story ends early
            seed += 100
            pair = [
                lambda s=seed: raw_llama(native, ids, n, s),
                lambda s=seed: ours(llama, prompt, n, s),
            ]
            # the order changes, so that neither always follows the other
            order = (0, 1) if turn % 2 else (1, 0)
            results: dict[int, Any] = {at: pair[at]() for at in order}
            samples = results[1][1]
            if results[0][1] != samples[0].text:
                raise SystemExit("raw llama.cpp and ours did not compute the same tokens")
            if complete(samples):
                break
        keep("llama_raw", results[0][0])
        keep("llama_ours", results[1][0])
        spent, theirs = peer(ids, n, 0, sample=False)
        keep("peer_greedy", spent)
        spent, samples = ours(models["float32"], prompt, n, 0, temperature=0.0)
        keep("float32_greedy", spent)
        if not complete(samples):
            raise SystemExit("the greedy story ended early: take another prompt")
        if n == 1 and list(samples[0].ids or ()) != theirs:
            raise SystemExit("transformers and ours did not compute the same greedy tokens")
        keep("peer_sampled", peer(ids, n, turn, sample=True)[0])
        for dtype, model in models.items():
            keep(dtype, until_complete(model, prompt, n, turn))
        keep("reproducible", until_complete(models["float32"], prompt, n, turn, reproducible=True))
        for kind in products.kinds:
            keep(kind, products(kind, n) * NEW_TOKENS)
    for values in seconds.values():
        del values[0]
    row: dict[str, float] = {"n": n}
    row.update((name, speed(n, values)) for name, values in seconds.items())

    def ratio(slow: str, fast: str) -> float:
        pairs = zip(seconds[slow], seconds[fast], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 3)

    row["llama_ratio"] = ratio("llama_raw", "llama_ours")
    row["greedy_ratio"] = ratio("peer_greedy", "float32_greedy")
    row["sampled_ratio"] = ratio("peer_sampled", "float32")
    row["share_transposed"] = ratio("transposed", "float32_greedy")
    row["share_kernels"] = ratio("our kernels", "float32_greedy")
    row["int8_ratio"] = ratio("llama_raw", "int8")
    return row


def until_complete(model: ft.Model, prompt: ft.Prompt, n: int, turn: int, **options: Any) -> float:
    """Seconds of a run in which no story ended early."""
    for attempt in range(50):
        spent, samples = ours(model, prompt, n, 1000 * turn + attempt, **options)
        if complete(samples):
            return spent
    raise SystemExit("every story ended early: take another prompt")


def table(title: str, heads: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Columns as wide as their heads."""
    widths = [
        max(len(str(cell)) for cell in column) + 2 for column in zip(heads, *rows, strict=True)
    ]
    print(title)
    for row in (heads, *rows):
        print("".join(f"{cell!s:>{width}}" for cell, width in zip(row, widths, strict=True)))
    print()


if __name__ == "__main__":
    main()
