"""Sampling on the CPU: both local engines beside what they stand on, and beside transformers.

    python benchmarks/cpu_sampling.py [--runs 5] [--threads 2]

SmolLM2-135M (the GGUF of Q4_1; torch and transformers compute with its dequantised weights), 64 new
tokens for each of n = 1, 4, 16 samples of one prompt. Each contender has a process of its own, as a
user's program has, loaded once; they take turns round by round. (In one process their helper
threads slow each other down.)

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
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F

import forethought as ft
from _machine import describe, save
from forethought.engines.llama_cpp import LlamaCppEngine
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
PRECISIONS = ("float32", "bfloat16", "int8")
PRODUCTS = ("F.linear", "transposed", "our kernels")
KINDS = ("llama.cpp", "transformers", *PRECISIONS, "products")
RATIOS = (
    ("llama_ratio", "llama_raw", "llama_ours"),
    ("greedy_ratio", "peer_greedy", "float32_greedy"),
    ("sampled_ratio", "peer_sampled", "float32"),
    ("share_transposed", "transposed", "float32_greedy"),
    ("share_kernels", "our kernels", "float32_greedy"),
    ("int8_ratio", "llama_raw", "int8"),
)
"""Name of each ratio, and whose seconds are divided by whose."""

SHAPES = ((QKV, D), (D, D), (2 * INNER, D), (D, INNER))


def raw_llama(native: Any, ids: tuple[int, ...], n: int, seed: int) -> dict[str, Any]:
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
    return {"s": time.perf_counter() - started, "text": "".join(texts[0])}


def ours(model: ft.Model, prompt: ft.Prompt, n: int, seed: int, **options: Any) -> dict[str, Any]:
    """An engine, through the events that a display consumes."""
    started = time.perf_counter()
    handle = model.submit(prompt, n=n, seed=seed, max_tokens=NEW_TOKENS, **options)
    for _batch in handle.batches():
        pass
    spent = time.perf_counter() - started
    samples = handle.wait()
    return {
        "s": spent,
        "text": samples[0].text,
        "ids": samples[0].ids,
        # whether no story ended early
        "complete": all(sample.usage.completion_tokens == NEW_TOKENS for sample in samples),
    }


class Transformers:
    """`generate` of transformers on the same weights."""

    def __init__(self, gguf: Path, threads: int) -> None:
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.set_num_threads(threads)
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        self.model.train(False)

    def __call__(self, ids: list[int], n: int, seed: int, sample: bool) -> dict[str, Any]:
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
        return {"s": time.perf_counter() - started, "ids": out[0, len(ids) :].tolist()}


def _linear(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weight)


def _product(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.mm(x, weight)


class Products:
    """A step's matrix products and nothing else, on random weights of the same shapes."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        shapes = [*(SHAPES * LAYERS), (VOCABULARY, D)]
        plain = [torch.randn(shape) for shape in shapes]
        transposed = [weight.t().contiguous() for weight in plain]
        self.kinds: dict[str, list[Callable[[torch.Tensor], torch.Tensor]]] = {
            "F.linear": [partial(_linear, w) for w in plain],
            "transposed": [partial(_product, w) for w in transposed],
            "our kernels": [make_kernel(w, None, "float32") for w in plain],
        }
        self._widths = [shape[1] for shape in shapes]

    def __call__(self, kind: str, n: int) -> dict[str, float]:
        """Seconds of NEW_TOKENS steps, by the best of a few."""
        products = self.kinds[kind]
        inputs = {width: torch.randn(n, width) for width in (D, INNER)}
        best = math.inf
        with torch.inference_mode():
            for _ in range(6):
                started = time.perf_counter()
                for product, width in zip(products, self._widths, strict=True):
                    product(inputs[width])
                best = min(best, time.perf_counter() - started)
        return {"s": best * NEW_TOKENS}


def perplexity(model: ft.Model) -> dict[str, float]:
    """exp of the mean negative log-likelihood of the text's tokens after the first."""
    engine = model.engine
    assert isinstance(engine, TorchEngine)
    # The text begins a document.
    ids = [0, *engine.tokenizer.encode(TEXT.read_text(encoding="utf-8"), parse_special=False)]
    program = engine.program
    cache = RowCache(program.layers)
    cache.reserve(1, len(ids))
    with torch.inference_mode():
        cache.prefill(0, 0, len(ids))
        hidden = program.hidden(torch.tensor([ids]), torch.arange(len(ids))[None], cache)
        logits = program.logits(hidden[:-1]).float()
        loss = F.cross_entropy(logits, torch.tensor(ids[1:])).item()
    return {"perplexity": math.exp(loss), "tokens": len(ids)}


def serve(kind: str, threads: int) -> None:
    """Be one contender: a JSON line in, a JSON line out."""
    with ft.load("smollm2:135m", slots=16, threads=threads, context=512) as probe:
        assert isinstance(probe.engine, LlamaCppEngine)
        gguf = probe.engine.path
        prompt = probe.prompt(PROMPT, template="bare")
        assert prompt.ids is not None
        if kind == "llama.cpp":
            native = probe.engine.server._native
            answer_all(
                {
                    "raw": lambda n, seed: raw_llama(native, prompt.ids or (), n, seed),
                    "ours": lambda n, seed: ours(probe, prompt, n, seed),
                }
            )
            return
    if kind == "transformers":
        peer = Transformers(gguf, threads)
        ids = list(prompt.ids)
        answer_all(
            {
                "greedy": lambda n, seed: peer(ids, n, seed, sample=False),
                "sampled": lambda n, seed: peer(ids, n, seed, sample=True),
            }
        )
    elif kind == "products":
        products = Products(threads)
        answer_all({name: lambda n, seed, name=name: products(name, n) for name in products.kinds})
    else:
        model = ft.load("smollm2:135m", engine="torch", dtype=kind, threads=threads, context=512)
        answer_all(
            {
                "greedy": lambda n, seed: ours(model, prompt, n, seed, temperature=0.0),
                "sampled": lambda n, seed: ours(model, prompt, n, seed),
                "reproducible": lambda n, seed: ours(model, prompt, n, seed, reproducible=True),
                "perplexity": lambda n, seed: perplexity(model),
            }
        )


def answer_all(verbs: dict[str, Callable[..., dict[str, Any]]]) -> None:
    """Serve until the pipe is closed."""
    print("ready", flush=True)
    for line in sys.stdin:
        verb, n, seed = json.loads(line)
        print(json.dumps(verbs[verb](n, seed)), flush=True)


class Contender:
    """A process that serves one contender."""

    def __init__(self, kind: str, threads: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, "--serve", kind, "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._read()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a contender's process died")
        return line

    def __call__(self, verb: str, n: int = 1, seed: int = 0) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([verb, n, seed]) + "\n")
        self._process.stdin.flush()
        return cast(dict[str, Any], json.loads(self._read()))

    def complete(self, verb: str, n: int, turn: int) -> float:
        """Seconds of a run in which no story ended early."""
        for attempt in range(50):
            done = self(verb, n, 1000 * turn + attempt)
            if done["complete"]:
                return float(done["s"])
        raise SystemExit("every story ended early: take another prompt")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


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
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.threads)
        return
    contenders = {kind: Contender(kind, arguments.threads) for kind in KINDS}
    print(
        f"{describe()}, torch {torch.__version__}\n"
        f"SmolLM2-135M, {NEW_TOKENS} new tokens, {arguments.threads} threads, tokens/s, median of "
        f"{arguments.runs} rounds in turn\n"
    )
    rows = [measure(n, arguments.runs, contenders) for n in SAMPLES]
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
    scores = {dtype: contenders[dtype]("perplexity") for dtype in PRECISIONS}
    perplexities = {dtype: round(score["perplexity"], 3) for dtype, score in scores.items()}
    tokens = scores["float32"]["tokens"]
    table(
        f"perplexity on {TEXT.name}, {tokens} tokens",
        ("weights", "perplexity", "against float32"),
        [
            (dtype, value, f"{value / perplexities['float32'] - 1:+.2%}")
            for dtype, value in perplexities.items()
        ],
    )
    for contender in contenders.values():
        contender.close()
    starts = {
        "llama.cpp Q4_1": child("llama.cpp"),
        **{f"torch {dtype}": child("torch", dtype) for dtype in PRECISIONS},
    }
    table(
        "to start, in a process of its own",
        ("engine", "load s", "process start to first token s", "peak memory MiB"),
        [(name, r["load_s"], r["first_token_s"], r["peak_mib"]) for name, r in starts.items()],
    )
    save(
        "cpu_sampling",
        {
            "threads": arguments.threads,
            "runs": arguments.runs,
            "rows": rows,
            "perplexity": perplexities,
            "starts": starts,
        },
    )


def measure(n: int, runs: int, contenders: dict[str, Contender]) -> dict[str, float]:
    """All contenders in turn, one round to warm up and then ``runs``; medians."""
    seconds: dict[str, list[float]] = {}
    llama, peer = contenders["llama.cpp"], contenders["transformers"]
    seed = 0
    for turn in range(runs + 1):
        while True:  # until no story ends early
            seed += 100
            # the order changes, so that neither always follows the other
            pair = {
                verb: llama(verb, n, seed)
                for verb in (("raw", "ours") if turn % 2 else ("ours", "raw"))
            }
            if pair["raw"]["text"] != pair["ours"]["text"]:
                raise SystemExit("raw llama.cpp and ours did not compute the same tokens")
            if pair["ours"]["complete"]:
                break
        theirs = peer("greedy", n)
        mine = contenders["float32"]("greedy", n)
        if not mine["complete"]:
            raise SystemExit("the greedy story ended early: take another prompt")
        if n == 1 and mine["ids"] != theirs["ids"]:
            raise SystemExit("transformers and ours did not compute the same greedy tokens")
        spent = {
            "llama_raw": pair["raw"]["s"],
            "llama_ours": pair["ours"]["s"],
            "peer_greedy": theirs["s"],
            "float32_greedy": mine["s"],
            "peer_sampled": peer("sampled", n, turn)["s"],
            "reproducible": contenders["float32"].complete("reproducible", n, turn),
        }
        spent.update((kind, contenders[kind].complete("sampled", n, turn)) for kind in PRECISIONS)
        spent.update((kind, contenders["products"](kind, n)["s"]) for kind in PRODUCTS)
        if turn:  # the first round warms up
            for name, value in spent.items():
                seconds.setdefault(name, []).append(value)
    row: dict[str, float] = {"n": n}
    row.update((name, speed(n, values)) for name, values in seconds.items())
    for name, slow, fast in RATIOS:
        pairs = zip(seconds[slow], seconds[fast], strict=True)
        row[name] = round(statistics.median(a / b for a, b in pairs), 3)
    return row


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
