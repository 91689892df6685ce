"""What the CUDA sampler is measured beside: a naive loop in a CUDA graph, and transformers.

B: rows, T: tokens of the cache, V: vocabulary, H: query heads, G: key heads, K: width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F

from _gpu_shapes import transformers_config
from forethought.models.causal_lm import CausalLM
from forethought.models.packed import PackedSequences


class StaticCache:
    """Keys and values of B rows of T tokens, all of them looked at in every step."""

    def __init__(self, network: CausalLM, rows: int, tokens: int) -> None:
        self.layers: list[tuple[torch.Tensor, torch.Tensor] | None] = [
            None
        ] * network.config.num_hidden_layers
        self.rows, self.tokens = rows, tokens
        self.lengths_B = torch.zeros(rows, dtype=torch.int64, device=network.device)
        self.mask: torch.Tensor | None = None
        self.prompts: PackedSequences | None = None
        self.fill: tuple[torch.Tensor, torch.Tensor] | None = None

    def attend(
        self,
        layer: int,
        q_BHTK: torch.Tensor,
        k_BGTK: torch.Tensor,
        v_BGTV: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        values = k_BGTK if v_BGTV is None else v_BGTV
        held = self.layers[layer]
        if held is None:
            k_room, v_room = (
                new.new_zeros(self.rows, new.shape[1], self.tokens, new.shape[3])
                for new in (k_BGTK, values)
            )
            held = self.layers[layer] = (k_room, v_room)
        if self.prompts is not None:
            assert self.fill is not None
            of, to = self.fill  # token of the packed row, place among B * T
            for new, stored in zip((k_BGTK, values), held, strict=True):
                stored[to // self.tokens, :, to % self.tokens] = new[0].transpose(0, 1)[of]
            return self.prompts.attend(layer, q_BHTK, k_BGTK, v_BGTV, scale)
        rows = torch.arange(self.rows, device=self.lengths_B.device)
        for new, stored in zip((k_BGTK, values), held, strict=True):
            stored[rows, :, self.lengths_B] = new[:, :, 0]
        k_BGSK, v_BGSV = held
        groups = k_BGSK.shape[1]
        # Heads of a group as if they were tokens of a query: no key is repeated.
        q_BGHK = q_BHTK[:, :, 0].reshape(self.rows, groups, -1, q_BHTK.shape[3])
        out = F.scaled_dot_product_attention(q_BGHK, k_BGSK, v_BGSV, self.mask, scale=scale)
        return out.flatten(1, 2)[:, :, None]


class NaiveLoop:
    """A static batch: every prompt's samples begin together, one captured step is replayed until
    the longest has ended, and what is drawn for the others meanwhile is thrown away."""

    def __init__(self, network: CausalLM, rows: int, tokens: int, end_id: int) -> None:
        self.network, self.rows, self.tokens, self.end_id = network, rows, tokens, end_id
        device = network.device
        self.cache = StaticCache(network, rows, tokens)
        self.next_B = torch.zeros(rows, dtype=torch.int64, device=device)
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        self.limits_B = torch.zeros(rows, dtype=torch.int64, device=device)
        self.ids_TB = torch.zeros(tokens, rows, dtype=torch.int64, device=device)
        self.logprobs_TB = torch.zeros(tokens, rows, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def _step(self) -> None:
        cache = self.cache
        cache.prompts = None
        places_T = torch.arange(self.tokens, device=self.network.device)
        unseen_BT = places_T > cache.lengths_B[:, None]
        mask_BT = torch.zeros(unseen_BT.shape, dtype=self.network.dtype, device=places_T.device)
        cache.mask = mask_BT.masked_fill_(unseen_BT, -torch.inf)[:, None, None]
        hidden = self.network.hidden(self.next_B[:, None], cache.lengths_B[:, None], cache)
        logits_BV = self.network.logits(hidden[:, 0]).float()
        last_B = self.step + 1 >= self.limits_B
        logits_BV[:, self.end_id] = -torch.inf
        logprobs_BV = logits_BV.log_softmax(dim=-1)
        ids_B = torch.multinomial(logprobs_BV.exp(), 1)[:, 0]
        ids_B = torch.where(last_B, self.end_id, ids_B)
        self.ids_TB.index_copy_(0, self.step, ids_B[None])
        chosen_1B = logprobs_BV.gather(1, ids_B[:, None]).t()
        self.logprobs_TB.index_copy_(0, self.step, chosen_1B)
        self.next_B.copy_(ids_B)
        cache.lengths_B += 1
        self.step += 1

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Sequence[int]], n: int, limits: Sequence[int]) -> int:
        """Sample n of each prompt; tokens that count."""
        device = self.network.device
        packed = PackedSequences([len(prompt) - 1 for prompt in prompts], device)
        ids = torch.tensor([[token for prompt in prompts for token in prompt[:-1]]], device=device)
        of = torch.cat(
            [
                torch.arange(start, start + length)
                for start, length in zip(packed.starts, packed.lengths, strict=True)
                for _ in range(n)
            ]
        )
        to = torch.cat(
            [
                (prompt * n + at) * self.tokens + torch.arange(length)
                for prompt, length in enumerate(packed.lengths)
                for at in range(n)
            ]
        )
        self.cache.prompts, self.cache.fill = packed, (of.to(device), to.to(device))
        self.network.hidden(ids, packed.positions_1N, self.cache)
        self.cache.lengths_B.copy_(torch.tensor(packed.lengths).repeat_interleave(n))
        self.next_B.copy_(torch.tensor([prompt[-1] for prompt in prompts]).repeat_interleave(n))
        self.limits_B.copy_(torch.tensor(limits))
        self.step.zero_()
        longest = max(limits)
        start = 0
        if self.graph is None:
            self._step()
            start = 1
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._step()
            self.graph = graph
        for _ in range(start, longest):
            self.graph.replay()
        whole = self.ids_TB[:longest].cpu()
        self.logprobs_TB[:longest].cpu()
        samples = [whole[:limit, row].tolist() for row, limit in enumerate(limits)]
        return sum(len(sample) for sample in samples)


class Transformers:
    """`generate` of transformers: a network of the same shape, random weights, the same dtype."""

    def __init__(self, name: str, end_id: int) -> None:
        import transformers

        config = transformers_config(name)
        config.eos_token_id, config.pad_token_id = end_id, 0
        with torch.device("cuda"):
            model: Any = cast(Any, transformers.AutoModelForCausalLM).from_config(config)
        self.model = model.to(torch.bfloat16).eval()
        self.version = transformers.__version__
        self.end_id = end_id

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Sequence[int]], n: int, limits: Sequence[int]) -> int:
        """As the naive loop; prompts are padded at the left, ends forced at the same places."""
        longest = max(len(prompt) for prompt in prompts)
        rows = [prompt for prompt in prompts for _ in range(n)]
        ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device="cuda")
        mask = torch.tensor(
            [[0] * (longest - len(row)) + [1] * len(row) for row in rows], device="cuda"
        )
        limits_B = torch.tensor(limits, device="cuda")
        end_id = self.end_id

        class Forced:
            def __call__(self, seen: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
                last_B = seen.shape[1] - longest + 1 >= limits_B
                scores = scores.clone()
                scores[:, end_id] = -torch.inf
                forced = torch.full_like(scores, -torch.inf)
                forced[:, end_id] = 0.0
                return torch.where(last_B[:, None], forced, scores)

        self.model.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=max(limits),
            logits_processor=[Forced()],
            pad_token_id=0,
            eos_token_id=end_id,
        )
        return sum(limits)
