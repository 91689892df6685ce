"""transformers as the reference: random models of odd shapes, and what counts as equal.

reference = random_reference({"model_type": "llama", "hidden_size": 48, ...}, seed=1)
network = ours(reference, tmp_path)
assert_close(network(ids), reference(ids).logits, 1e-4)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from forethought.models.causal_lm import CausalLM

GREEDY_TIE = 1e-4


def random_reference(
    config: dict[str, Any], seed: int = 0, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A transformers model in which every parameter matters, biases and norms included."""
    fields = dict(config)
    network = AutoConfig.for_model(fields.pop("model_type"), **fields)
    network._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(network, dtype=torch.float32).eval()
    randomise(model, seed)
    return model.to(dtype)


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int) -> None:
    """Matrices of unit gain, norms between 0.5 and 1.5, biases and router biases around zero."""
    generator = torch.Generator().manual_seed(seed)
    learned = [*model.named_parameters()]
    learned += [(name, b) for name, b in model.named_buffers() if name.endswith("correction_bias")]
    for name, tensor in learned:
        if tensor.dim() >= 2:
            tensor.normal_(0.0, tensor.shape[-1] ** -0.5, generator=generator)
        elif name.endswith("norm.weight"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        else:
            tensor.normal_(0.0, 0.3, generator=generator)


def save_reference(reference: PreTrainedModel, folder: Path, **options: Any) -> Path:
    """The folder that transformers writes; `options` go to `save_pretrained`."""
    reference.save_pretrained(folder, **options)
    return folder


def ours(reference: PreTrainedModel, folder: Path) -> CausalLM:
    """Our network with the weights of `reference`, by way of a saved folder."""
    from forethought.models.loading import load

    return load(save_reference(reference, folder))


class FolderTensors:
    """The tensors of a saved folder as the safetensors library reads them (a `Weights`)."""

    def __init__(self, folder: Path) -> None:
        self._tensors: dict[str, torch.Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                self._tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def names(self) -> Iterator[str]:
        return iter(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        tensor = self._tensors[name]
        return tensor if dtype is None else tensor.to(dtype)

    def close(self) -> None:
        self._tensors.clear()


def random_ids(vocab_size: int, batch: int, length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocab_size, (batch, length), generator=generator)


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """max |ours - theirs| / max |theirs|; infinite for a NaN or another shape."""
    if ours.shape != theirs.shape:
        return float("inf")
    ours, theirs = ours.detach().double(), theirs.detach().double()
    error = float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))
    return error if error == error else float("inf")


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, bound: float, what: str = "") -> None:
    error = relative_error(ours, theirs)
    assert error < bound, f"{what}: relative error {error:.3g}, shapes {ours.shape} {theirs.shape}"


def next_token_loss(logits_BTV: torch.Tensor, ids_BT: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of each token given those before it."""
    return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten())


def greedy(
    logits_of: Callable[[torch.Tensor], torch.Tensor], prompt: Sequence[int], new: int
) -> list[int]:
    """`new` greedy tokens by whole forward passes; `logits_of` maps [1, T] ids to [1, T, V]."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(new):
            ids.append(int(logits_of(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def greedy_difference(
    ours: Sequence[int],
    theirs: Sequence[int],
    prompt: Sequence[int],
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    tie: float = GREEDY_TIE,
) -> str | None:
    """What is wrong between two greedy continuations of `prompt`, or None.

    A first difference is allowed where the two best logits lie within `tie` and both continuations
    took one of these two: rounding decides there. What follows it is not compared. `logits_of` is
    the reference network.
    """
    if len(ours) != len(theirs):
        return f"{len(ours)} tokens against {len(theirs)}"
    pairs = zip(ours, theirs, strict=True)
    first = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if first is None:
        return None
    with torch.no_grad():
        logits = logits_of(torch.tensor([[*prompt, *theirs[:first]]]))[0, -1]
    best = logits.topk(2)
    gap = float(best.values[0] - best.values[1])
    if gap <= tie and {ours[first], theirs[first]} == set(best.indices.tolist()):
        return None
    return f"token {first}: {ours[first]} against {theirs[first]}, the best two {gap:.3g} apart"


def same_greedy(
    ours: Sequence[int],
    theirs: Sequence[int],
    prompt: Sequence[int],
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    tie: float = GREEDY_TIE,
) -> bool:
    """Whether two greedy continuations agree; see :func:`greedy_difference`."""
    return greedy_difference(ours, theirs, prompt, logits_of, tie) is None
