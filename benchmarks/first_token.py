"""Process start to first token: `forethought ask` beside bare xllamacpp, on the same question.

    python benchmarks/first_token.py [--runs 10] [--model smollm2:135m|nano]

Every run is a fresh process with the model in the page cache; the rows take turns, so that a change
of the machine's speed hits all alike. The clock starts before the process does and stops when the
first character of text arrives. Bare xllamacpp gets forethought's own rendered prompt, so that all
rows compute the same tokens. Prints a table and ends with one JSON line, of `first_token` for
SmolLM2 and `first_token_nano` for nano.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

from _machine import describe, save

QUESTIONS = {
    "smollm2:135m": "Are tomatoes fruits?",
    "nano": "Use 19, 36, 55 and 7 to make 65.",
}

BARE = """
import sys, xllamacpp
path, prompt, tuned = sys.argv[1], sys.argv[2], sys.argv[3] == "tuned"
p = xllamacpp.CommonParams()
p.model.path, p.n_ctx, p.verbosity = path, int(sys.argv[4]), -1
p.cpuparams.n_threads = int(sys.argv[5])
p.cpuparams_batch.n_threads = int(sys.argv[5])
if tuned:
    p.fit_params, p.warmup = False, False
server = xllamacpp.Server(p)
def first(chunk):
    sys.stdout.write("#" + chunk["choices"][0]["text"])
    sys.stdout.flush()
    return True
server.handle_completions({"prompt": prompt, "n_predict": 8, "stream": True}, first)
"""


def first_byte(command: list[str], skip: bytes = b"") -> float:
    """Seconds until the command's output goes beyond ``skip``."""
    started = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        seen = b""
        while True:
            seen += os.read(process.stdout.fileno(), 4096)
            rest = seen.strip()
            if len(rest) > len(skip) and rest.startswith(skip):
                break
            if process.poll() is not None and not rest:
                raise RuntimeError(f"{command[:4]} ended with {process.returncode}")
        spent = time.perf_counter() - started
        process.kill()
    return spent


def measure(name: str, runs: int, threads: int) -> tuple[int, dict[str, list[float]]]:
    """Tokens of the prompt, and for each way to ask ``name`` the seconds of its runs."""
    import forethought as ft
    from forethought.engines.llama_cpp import LlamaCppEngine

    question = QUESTIONS[name]
    with ft.load(name, threads=threads) as model:
        assert isinstance(model.engine, LlamaCppEngine)
        options = model.engine.server.options
        prompt = model.prompt(question)
    assert prompt.text is not None
    assert prompt.ids is not None
    bare = [sys.executable, "-c", BARE, str(options.path), prompt.text]
    size = [str(options.cells), str(threads)]
    ask = [sys.executable, "-m", "forethought", "ask", "-m", name, "--threads", str(threads)]
    rows = {
        "bare xllamacpp, its defaults": ([*bare, "defaults", *size], b""),
        "bare xllamacpp, loaded once, no warm-up": ([*bare, "tuned", *size], b""),
        "forethought ask": ([*ask, question], b"thinking:"),
    }
    seconds: dict[str, list[float]] = {row: [] for row in rows}
    for number in range(runs + 1):
        for row, (command, skip) in rows.items():
            spent = first_byte(command, skip)
            if number:  # the first round warms the page cache
                seconds[row].append(spent)
    return len(prompt.ids), seconds


def table(seconds: dict[str, list[float]]) -> None:
    """Print a line for each way to ask."""
    print(f"{'process start to first token':<42}{'median s':>9}{'min':>7}{'max':>7}")
    for name, values in seconds.items():
        print(f"{name:<42}{statistics.median(values):>9.2f}{min(values):>7.2f}{max(values):>7.2f}")


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", choices=QUESTIONS, default="smollm2:135m")
    chosen = parser.parse_args()
    runs, threads = chosen.runs, chosen.threads
    tokens, seconds = measure(chosen.model, runs, threads)
    print(f"{describe()}\nprompt {tokens} tokens, {threads} threads, {runs} runs each\n")
    table(seconds)
    save(
        "first_token_nano" if chosen.model == "nano" else "first_token",
        {
            "prompt_tokens": tokens,
            "threads": threads,
            "runs": runs,
            "seconds": {name: [round(v, 3) for v in values] for name, values in seconds.items()},
            "median": {name: round(statistics.median(v), 3) for name, v in seconds.items()},
        },
    )


if __name__ == "__main__":
    main()
