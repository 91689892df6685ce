"""Whether the bundled model is the run that it was made of, on held-out problems.

    python benchmarks/nano_parity.py RUN_FOLDER [FAMILY ...] [--greedy 50] [--problems 512]

RUN_FOLDER is the finished run; families: those of its recipe unless some are named.

(a) The same greedy tokens at float32 on `--greedy` problems: transformers and our torch engine from
the folder, llama.cpp from an f32 GGUF of it (float32 cache, no flash attention). Where two differ,
the gap between the two likeliest logits of transformers at that place is printed: a tie, or not.

(b) pass@1 of the bundled q8_0 file through llama.cpp, asked as `ask` does, and of the folder in
float32: an f32 GGUF of it asked the same way, or (`--whole torch`, far slower) the folder sampled
as a run's evaluations are. Both on the same `--problems` problems, `--samples` samples each at
temperature `--temperature` (0.6, top-p 0.95: those of `ask`). The difference is taken problem by
problem, and its standard error is over problems (so clustered by problem). The bar is 0.02.

Prints tables and ends with one JSON line. Needs the extra dev.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import forethought as ft
from _machine import describe, save
from forethought.checkpoints.bundled import card_of
from forethought.checkpoints.catalogue import find
from forethought.checkpoints.export import export_gguf
from forethought.engines.model import Model
from forethought.problems.family import Family
from forethought.problems.problem import Problem
from forethought.problems.registry import family
from forethought.problems.stream import held_out_problems
from forethought.recipes.reading import LoadedRecipe, read_recipe

BAR: Final = 0.02
TIE: Final = 1e-3
"""Logits closer than this are a tie: float32 sums in another order differ by as much."""
ROWS: Final = 256
"""Samples side by side, of the folder."""
HELD_OUT_SEED: Final = 20_250_122
"""That of a run's own evaluations, so that the problems are the same ones."""

Greedy = Callable[[Sequence[int], int], list[int]]
"""Tokens after a prompt: so many, or up to the end token, which is left out."""


def families_of(loaded: LoadedRecipe, names: Sequence[str]) -> dict[str, Family]:
    """The run's families, or those that are named, by name."""
    chosen = loaded.recipe.problems
    found = [
        family(name, folder=loaded.folder, settings=chosen.settings)
        for name in names or chosen.families
    ]
    return {one.name: one for one in found}


def problems_of(loaded: LoadedRecipe, families: Mapping[str, Family], count: int) -> list[Problem]:
    """Held-out problems as the run's evaluations draw them."""
    chosen = loaded.recipe.problems
    return held_out_problems(
        [*families.values()],
        count,
        HELD_OUT_SEED,
        levels={name: levels for name, levels in chosen.levels.items() if name in families},
        language=chosen.language,
    )


# -- (a) greedy tokens


@contextlib.contextmanager
def greedy_llama(run: Path, context: int, threads: int, end: int) -> Iterator[Greedy]:
    """llama.cpp on an f32 GGUF of the run, computed as plainly as it can."""
    import xllamacpp

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "f32.gguf"
        export_gguf(run, file, "f32")
        p = xllamacpp.CommonParams()
        p.model.path = str(file)
        p.n_ctx, p.n_parallel, p.verbosity = context, 1, -1
        p.fit_params = p.warmup = p.ui = False
        p.cache_ram_mib = 0
        key = os.urandom(24).hex()
        p.api_keys, p.cors_origins = [key], ""
        p.cpuparams.n_threads = p.cpuparams_batch.n_threads = threads
        p.cache_type_k = p.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        server = xllamacpp.Server(p)
        address = str(server.listening_address)

        def tokens(prompt: Sequence[int], count: int) -> list[int]:
            body = {
                "prompt": list(prompt),
                "n_predict": count,
                "temperature": 0.0,
                "samplers": ["top_k"],
                "top_k": 1,
                "return_tokens": True,
                "cache_prompt": False,
            }
            # only over its own port it answers with token ids
            request = urllib.request.Request(
                f"{address}/completion",
                json.dumps(body).encode(),
                {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=300) as answer:
                return _ended([int(token) for token in json.load(answer)["tokens"]], end)

        yield tokens
        del server


def greedy_transformers(network: Any, end: int) -> Greedy:
    import torch

    def tokens(prompt: Sequence[int], count: int) -> list[int]:
        found: list[int] = []
        with torch.no_grad():
            step = network(torch.tensor([list(prompt)]), use_cache=True)
            while len(found) < count:
                best = int(step.logits[0, -1].argmax())
                if best == end:
                    break
                found.append(best)
                step = network(
                    torch.tensor([[best]]), past_key_values=step.past_key_values, use_cache=True
                )
        return found

    return tokens


def greedy_ours(model: Model, end: int) -> Greedy:
    def tokens(prompt: Sequence[int], count: int) -> list[int]:
        # exact and without a thought: no budget puts anything in
        asked = ft.Prompt((ft.Message("user", "?"),), "?", tuple(prompt), thinks=False, exact=True)
        return _ended(list(model.ask(asked, temperature=0.0, max_tokens=count).ids or ()), end)

    return tokens


def _ended(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids


def gap(network: Any, ids: Sequence[int]) -> float:
    """Between the two likeliest logits of the token after ``ids``."""
    import torch

    with torch.no_grad():
        two = network(torch.tensor([list(ids)])).logits[0, -1].topk(2).values
    return float(two[0] - two[1])


def compare_greedy(run: Path, problems: Sequence[Problem], threads: int) -> dict[str, Any]:
    """Print where engines differ; what there is to save."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    network = AutoModelForCausalLM.from_pretrained(run, dtype=torch.float32)
    network.train(False)
    context, end = network.config.max_position_embeddings, network.config.eos_token_id
    differ: dict[str, list[dict[str, Any]]] = {"llama.cpp": [], "forethought torch": []}
    written = 0
    with (
        ft.load(str(run), engine="torch", device="cpu", dtype="float32", threads=threads) as ours,
        greedy_llama(run, context, threads, end) as llama,
    ):
        theirs = greedy_transformers(network, end)
        others = {"llama.cpp": llama, "forethought torch": greedy_ours(ours, end)}
        for number, problem in enumerate(problems):
            prompt = ours.prompt(problem.text).ids
            assert prompt is not None
            count = context - len(prompt) - 1
            expected = theirs(prompt, count)
            written += len(expected)
            for name, tokens in others.items():
                found = tokens(prompt, count)
                if found == expected:
                    continue
                at = next(
                    (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b),
                    min(len(found), len(expected)),
                )
                apart = gap(network, [*prompt, *expected[:at]])
                differ[name].append({"problem": number, "at": at, "gap": apart})
                print(
                    f"{name}: problem {number} ({problem.family}) differs at token {at} of "
                    f"{len(expected)}, where the two likeliest logits are {apart:.2e} apart"
                )
            print(f"{number + 1} of {len(problems)}", file=sys.stderr)
    print(
        f"\nThe same greedy tokens as transformers, of {len(problems)} problems, {written} tokens"
    )
    for name, places in differ.items():
        ties = sum(place["gap"] <= TIE for place in places)
        print(f"{name:<24}{len(problems) - len(places):>6} the same, {ties} of the others ties")
    return {"problems": len(problems), "tokens": written, "differ": differ}


# -- (b) pass@1


def shares_of_gguf(
    model: Model,
    problems: Sequence[Problem],
    families: Mapping[str, Family],
    samples: int,
    temperature: float,
) -> list[float]:
    """For each problem the share of its samples that are right."""
    found = []
    for number, problem in enumerate(problems):
        replies = model.samples(
            problem.text,
            n=samples,
            seed=1000 * number,
            temperature=temperature,
            top_p=0.95,
        )
        verify = families[problem.family].verify
        right = [
            reply.final_answer is not None and verify(problem, reply.final_answer).correct
            for reply in replies
        ]
        found.append(sum(right) / len(right))
        if not (number + 1) % 32:
            print(f"pass@1: {number + 1} of {len(problems)}", file=sys.stderr)
    return found


def shares_of_run(
    run: Path,
    loaded: LoadedRecipe,
    problems: Sequence[Problem],
    families: Mapping[str, Family],
    samples: int,
    temperature: float,
) -> list[float]:
    """The same of the folder in float32."""
    import torch

    from forethought.evaluation.held_out import evaluate
    from forethought.training.config import EvaluationConfig, RewardConfig
    from forethought.training.judge_pool import JudgePool
    from forethought.training.judging import Judge
    from forethought.training.policy import Policy
    from forethought.training.prompting import Prompter
    from forethought.training.tokenizer import read_tokenizer

    network, tokenizer = ft.models.load(run, dtype=torch.float32), read_tokenizer(run)
    prompter = Prompter(tokenizer, loaded.recipe.prompt)
    longest = max(len(prompter.ids(problem.text)) for problem in problems)
    config = EvaluationConfig(
        problems=len(problems),
        samples=samples,
        temperature=temperature,
        top_p=0.95,
        max_tokens=network.config.max_position_embeddings - longest,
    )
    judge = Judge(tokenizer, {**families}, RewardConfig())
    with torch.no_grad(), JudgePool(judge, 0) as pool:
        policy = Policy(network.eval(), tokenizer, prompter)
        return list(evaluate(policy, pool, problems, config, rows=ROWS).correct)


def standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def compare_pass(
    loaded: LoadedRecipe,
    families: Mapping[str, Family],
    problems: Sequence[Problem],
    chosen: argparse.Namespace,
) -> dict[str, Any]:
    """Print pass@1 of both and their difference; what there is to save."""
    import torch

    samples, temperature = chosen.samples, chosen.temperature
    drawn = (problems, families, samples, temperature)
    engine = {"engine": "llama.cpp", "threads": chosen.threads, "slots": samples}
    with ft.load(chosen.bundled, **engine) as model:
        small = shares_of_gguf(model, *drawn)
    if chosen.whole == "llama.cpp":
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "whole.gguf"
            export_gguf(chosen.run, path, "f32")
            with ft.load(str(path), **engine) as model:
                whole = shares_of_gguf(model, *drawn)
    else:
        torch.set_num_threads(chosen.threads)
        whole = shares_of_run(chosen.run, loaded, *drawn)
    apart = [a - b for a, b in zip(small, whole, strict=True)]
    print(f"\npass@1, {len(problems)} problems, {samples} samples each, T {temperature}")
    print(f"{'':<24}{'q8_0':>8}{'float32':>9}{'apart':>9}{'error':>8}")
    names = sorted({problem.family for problem in problems})
    for name in ["all", *(names if len(names) > 1 else [])]:
        at = [i for i, one in enumerate(problems) if name in ("all", one.family)]
        values = [[kind[i] for i in at] for kind in (small, whole, apart)]
        means = [statistics.fmean(kind) for kind in values]
        error = standard_error(values[2])
        print(f"{name:<24}{means[0]:>8.3f}{means[1]:>9.3f}{means[2]:>9.3f}{error:>8.3f}")
    difference = statistics.fmean(apart)
    print(f"within {BAR}: {'yes' if abs(difference) <= BAR else 'NO'}")
    return {
        "problems": len(problems),
        "samples": samples,
        "temperature": temperature,
        "q8_0": round(statistics.fmean(small), 4),
        "q8_0_stderr": round(standard_error(small), 4),
        "float32": round(statistics.fmean(whole), 4),
        "float32_stderr": round(standard_error(whole), 4),
        "difference": round(difference, 4),
        "difference_stderr": round(standard_error(apart), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN_FOLDER")
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    parser.add_argument("--greedy", type=int, default=50)
    parser.add_argument("--problems", type=int, default=512)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--whole", choices=("llama.cpp", "torch"), default="llama.cpp")
    parser.add_argument("--bundled", default="nano", help="another GGUF instead of nano's")
    chosen = parser.parse_args()
    if chosen.run is None:
        print("No run folder was named: nothing is compared.")
        return
    loaded = read_recipe(str(chosen.run / "recipe.toml"))
    result: dict[str, Any] = {"recipe": loaded.recipe.name, "recipe_digest": loaded.digest}
    if chosen.bundled == "nano":
        card = card_of(find("nano"))
        assert card is not None
        if card.recipe_digest != loaded.digest:
            raise SystemExit(f"nano was not made of {chosen.run}: another recipe made it.")
        result["sha256"] = card.sha256
    print(f"{describe()}\nrecipe {loaded.recipe.name}\n")
    families = families_of(loaded, chosen.families)
    if chosen.greedy:
        problems = problems_of(loaded, families, chosen.greedy)
        result["greedy"] = compare_greedy(chosen.run, problems, chosen.threads)
    if chosen.problems:
        problems = problems_of(loaded, families, chosen.problems)
        result["pass_at_1"] = compare_pass(loaded, families, problems, chosen)
    save("nano_parity", result)


if __name__ == "__main__":
    main()
