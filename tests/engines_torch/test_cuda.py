"""The torch engine on CUDA: the same text as on the CPU, the same contract. Skips without a GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import forethought as ft
from forethought.engines.model import Model
from forethought.engines.protocol import Sample

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
NAMES = ("llama-tied-llama3", "qwen3", "deepseek_v3", "deepseek_v2")
PROMPT = "the quick brown fox"


@pytest.fixture(scope="module")
def on_gpu(tiny_folder: Callable[[str], Path]) -> Iterator[Callable[[str, str], Model]]:
    """A tiny model on CUDA in a dtype, loaded once."""
    loaded: dict[tuple[str, str], Model] = {}

    def model(name: str, dtype: str) -> Model:
        if (name, dtype) not in loaded:
            loaded[name, dtype] = ft.load(
                str(tiny_folder(name)), engine="torch", device="cuda", dtype=dtype
            )
        return loaded[name, dtype]

    yield model
    for each in loaded.values():
        each.close()


def samples(model: Model, n: int = 1, seed: int = 5, **options: object) -> list[Sample]:
    prompt = model.prompt(PROMPT, template="bare")
    return model.samples(
        prompt, **{"n": n, "seed": seed, "max_tokens": 40, "logprobs": "raw", **options}
    )


def agree(a: Sample, b: Sample, tolerance: float) -> None:
    """Equal ids; or, up to the first difference, equal log-probabilities and then a near tie."""
    assert a.ids is not None
    assert b.ids is not None
    assert a.logprobs is not None
    assert b.logprobs is not None
    for at, (left, right) in enumerate(zip(a.ids, b.ids, strict=False)):
        mine, theirs = a.logprobs[at], b.logprobs[at]
        assert mine is not None
        assert theirs is not None
        assert mine == pytest.approx(theirs, abs=tolerance), at
        if left != right:
            return
    assert len(a.ids) == len(b.ids)


@pytest.mark.parametrize("name", NAMES)
def test_greedy_text_is_the_cpu_s(
    name: str, on_gpu: Callable[[str, str], Model], tiny: Callable[[str], Model]
) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    gpu = samples(on_gpu(name, "float32"), temperature=0.0)[0]
    cpu = samples(tiny(name), temperature=0.0)[0]
    agree(gpu, cpu, 1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_drawn_text_is_the_cpu_s(
    name: str, on_gpu: Callable[[str, str], Model], tiny: Callable[[str], Model]
) -> None:
    """The noise depends on seed, index and position alone, on every device."""
    gpu = samples(on_gpu(name, "float32"), n=3, temperature=0.8, top_p=0.9)
    cpu = samples(tiny(name), n=3, temperature=0.8, top_p=0.9)
    same = sum(a.ids == b.ids for a, b in zip(gpu, cpu, strict=True))
    assert same >= 2
    assert gpu[0].ids != gpu[1].ids


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_a_bucket_gives_the_same_bits_whoever_is_in_it(
    name: str, dtype: str, on_gpu: Callable[[str, str], Model]
) -> None:
    model = on_gpu(name, dtype)
    alone = samples(model, n=4)
    again = samples(model, n=4)
    assert [s.ids for s in alone] == [s.ids for s in again]
    assert [s.logprobs for s in alone] == [s.logprobs for s in again]


@pytest.mark.parametrize("name", ["llama-tied-llama3", "deepseek_v3"])
def test_requests_side_by_side(name: str, on_gpu: Callable[[str, str], Model]) -> None:
    model = on_gpu(name, "float32")
    alone = [samples(model, seed=seed, max_tokens=20 + seed)[0] for seed in range(6)]
    together: dict[int, Sample] = {}

    def ask(seed: int) -> None:
        together[seed] = samples(model, seed=seed, max_tokens=20 + seed)[0]

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, sample in together.items():
        agree(sample, alone[seed], 1e-3)


def test_cancel_on_the_gpu(on_gpu: Callable[[str, str], Model]) -> None:
    model = on_gpu("deepseek_v3", "bfloat16")
    handle = model.submit(model.prompt(PROMPT, template="bare"), max_tokens=400, seed=1)
    batches = handle.batches()
    next(batches)
    handle.cancel()
    (sample,) = handle.wait()
    assert sample.stop_reason in ("cancelled", "stop")


def test_int8_is_refused_on_the_gpu(tiny_folder: Callable[[str], Path]) -> None:
    with pytest.raises(ft.UserError, match="int8 is for the CPU"):
        ft.load(str(tiny_folder("llama")), engine="torch", device="cuda", dtype="int8")
