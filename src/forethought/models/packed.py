"""Sequences in a row, without padding: what a training step runs a network on.

S: sequences, N: their tokens in a row, T: the longest of a group, H: query heads, G: key heads,
K: width of a key, V: width of a value.

Everything but attention works token by token, so a row [1, N] costs what its tokens cost. Attention
on CUDA in 16 bits is torch's flash attention of variable lengths (arXiv:2307.08691), which takes
the row as it is. Elsewhere it is computed on [S, T], padded at the right: there a causal token sees
nothing of the padding, and no mask is needed. Sequences of like length share a group, so that
padding stays below a half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from forethought.models.attention import causal_attention

_ALIKE = 0.6
"""A sequence joins a group while its length is at least this share of the group's longest."""


_HALVES = (torch.bfloat16, torch.float16)
_LONG = 512
"""From this length on cuDNN's attention is tried for sequences of one length."""
_FLASH_WIDTH = 256
"""The widest head that the flash kernels take; widths must be multiples of 8."""


def has_flash(device: torch.device, dtype: torch.dtype, widest_head: int) -> bool:
    """Whether rows are attended to as they are: all else is padded by the lengths of sequences."""
    return device.type == "cuda" and dtype in _HALVES and widest_head <= _FLASH_WIDTH


def to_device(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """A copy of a CPU tensor on ``device``; a GPU's copy is under way when this returns."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class _Group:
    """Sequences that are attended together: where their tokens stand in the row."""

    sequences: int
    longest: int
    from_row: torch.Tensor
    """[S * T]: the token of the row at each padded place (padding repeats some token)."""
    to_row: torch.Tensor
    """[tokens of the group]: the padded place of each token, in the order of `tokens`."""
    tokens: torch.Tensor
    """[tokens of the group]: where they stand in the row."""
    whole: bool
    """All sequences have the same length and follow each other: nothing has to be moved."""


class PackedSequences:
    """Implements :class:`forethought.models.attention.AttentionCache` and stores nothing: each
    sequence attends to itself alone, causally. Call a network with ids [1, N], the positions below
    and this in place of a cache. Gradients flow through it.

    ``lengths``: tokens of each sequence, in the order in which they stand; all at least 1.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | str = "cpu") -> None:
        if not lengths or min(lengths) < 1:
            raise ValueError("a packed row needs sequences, and each of them a token")
        self.lengths = tuple(lengths)
        self.device = torch.device(device)
        ends = tuple(accumulate(self.lengths))
        self.starts = (0, *ends[:-1])
        self.tokens = ends[-1]
        self._ends = ends

    @property
    def positions_1N(self) -> torch.Tensor:
        """Positions of the tokens within their sequences, [1, N]: what a network is called with."""
        starts = torch.tensor(self.starts).repeat_interleave(torch.tensor(self.lengths))
        return to_device(torch.arange(self.tokens) - starts, self.device)[None]

    @property
    def sequence_N(self) -> torch.Tensor:
        """Which sequence each token belongs to, int64 [N]."""
        lengths = torch.tensor(self.lengths)
        return to_device(torch.arange(len(lengths)).repeat_interleave(lengths), self.device)

    @cached_property
    def _bounds(self) -> torch.Tensor:
        """Where sequences begin and the last one ends, int32 [S + 1]."""
        return to_device(torch.tensor((0, *self._ends), dtype=torch.int32), self.device)

    @property
    def longest(self) -> int:
        """No sequence has more tokens."""
        return max(self.lengths)

    @cached_property
    def _groups(self) -> list[_Group]:
        return self._grouped()

    @cached_property
    def _back(self) -> torch.Tensor | None:
        """Where each token of the row stands behind the groups; None where there is one group."""
        if len(self._groups) == 1:
            return None
        order = torch.cat([group.tokens for group in self._groups])
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=self.device)
        return back

    def _grouped(self) -> list[_Group]:
        by_length = sorted(range(len(self.lengths)), key=lambda at: -self.lengths[at])
        members: list[list[int]] = []
        for at in by_length:
            if members and self.lengths[at] >= _ALIKE * self.lengths[members[-1][0]]:
                members[-1].append(at)
            else:
                members.append([at])
        return [self._group(sorted(group)) for group in members]

    def _group(self, group: list[int]) -> _Group:
        longest = max(self.lengths[at] for at in group)
        lengths_S = torch.tensor([self.lengths[at] for at in group])
        starts_S = torch.tensor([self.starts[at] for at in group])
        step_T = torch.arange(longest)
        inside_ST = step_T < lengths_S[:, None]
        place_ST = starts_S[:, None] + step_T.expand(len(group), -1).minimum(lengths_S[:, None] - 1)
        to_row = inside_ST.flatten().nonzero()[:, 0]
        whole = len(group) == len(self.lengths) and bool(inside_ST.all())
        return _Group(
            len(group),
            longest,
            to_device(place_ST.flatten(), self.device),
            to_device(to_row, self.device),
            to_device(place_ST.flatten()[to_row], self.device),
            whole,
        )

    def attend(
        self,
        layer: int,
        q_BHTK: torch.Tensor,
        k_BGTK: torch.Tensor,
        v_BGTV: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        """See the protocol; ``layer`` does not matter. ValueError for another number of tokens."""
        if q_BHTK.shape[0] != 1 or q_BHTK.shape[2] != self.tokens:
            raise ValueError(f"a packed row of {self.tokens} tokens, not {tuple(q_BHTK.shape)}")
        values = k_BGTK if v_BGTV is None else v_BGTV
        widest = max(q_BHTK.shape[-1], values.shape[-1])
        if has_flash(q_BHTK.device, q_BHTK.dtype, widest):
            return self._flash(q_BHTK, k_BGTK, values, scale)
        if len(self._groups) == 1 and self._groups[0].whole:
            group = self._groups[0]
            q, k, v = (_cut(x, group) for x in (q_BHTK, k_BGTK, values))
            out_SHTV = causal_attention(q, k, v, scale)
            return (
                out_SHTV.transpose(1, 2)
                .reshape(1, self.tokens, *out_SHTV.shape[1::2])
                .transpose(1, 2)
            )
        rows = [x[0].transpose(0, 1) for x in (q_BHTK, k_BGTK, values)]
        outputs = []
        for group in self._groups:
            q, k, v = (
                _Padded.apply(x, group).transpose(1, 2)  # type: ignore[no-untyped-call]
                for x in rows
            )
            out_SHTV = causal_attention(q, k, v, scale)
            outputs.append(out_SHTV.transpose(1, 2).flatten(0, 1).index_select(0, group.to_row))
        row_NHV = outputs[0]
        if self._back is not None:
            row_NHV = torch.cat(outputs).index_select(0, self._back)
        return row_NHV.transpose(0, 1)[None]

    def _flash(
        self, q_1HNK: torch.Tensor, k_1GNK: torch.Tensor, v_1GNV: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Causal attention within each sequence by torch's flash kernel, [1, H, N, V].

        The operator below is what `torch.nn.attention.varlen` calls; unlike that function, whose
        arguments differ between torch 2.10 and 2.13, it has not changed. Keys and values must be
        equally wide: columns of zeros change no product.
        """
        value_width = v_1GNV.shape[-1]
        width = -(-max(q_1HNK.shape[-1], value_width) // 8) * 8
        # `squeeze` and not an index: the gradient of an index is written into zeros.
        q, k, v = (_widened(x.squeeze(0).transpose(0, 1), width) for x in (q_1HNK, k_1GNK, v_1GNV))
        longest = self.longest
        if self._even and longest >= _LONG and not _no_cudnn:
            even = self._even_attention(q, k, v, scale)
            if even is not None:
                return even[..., :value_width] if width != value_width else even
        out_NHK: torch.Tensor = torch.ops.aten._flash_attention_forward(
            q, k, v, self._bounds, self._bounds, longest, longest, 0.0, True, False, scale=scale
        )[0]
        if width != value_width:
            out_NHK = out_NHK[..., :value_width]
        return out_NHK.transpose(0, 1).unsqueeze(0)

    @property
    def _even(self) -> bool:
        return min(self.lengths) == max(self.lengths)

    def _even_attention(
        self, q_NHK: torch.Tensor, k_NGK: torch.Tensor, v_NGK: torch.Tensor, scale: float
    ) -> torch.Tensor | None:
        """Sequences of one length, such as a corpus cut into rows: cuDNN's kernel, which is made
        for Hopper but plans each shape anew; [1, H, N, K]. None where it does not take them."""
        shape = (len(self.lengths), self.lengths[0])
        q, k, v = (x.reshape(*shape, *x.shape[1:]).transpose(1, 2) for x in (q_NHK, k_NGK, v_NGK))
        try:
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                out_SHTK = causal_attention(q, k, v, scale)
        except RuntimeError:
            _no_cudnn.append(True)
            return None
        return out_SHTK.transpose(1, 2).flatten(0, 1).transpose(0, 1).unsqueeze(0)


class PaddedSequences(PackedSequences):
    """A packed row of a size that does not say what stands in it, for passes that are captured
    once and replayed with other sequences.

    ``lengths``: those of the sequences with which it is captured, and of what fills the row behind
    them. Where there `has_flash` only ``bounds`` count, int64 [room + 1], whose last entries repeat
    the end of the row, unless ``even``: all lengths are equal, and those of a replay are the same.
    """

    def __init__(
        self, lengths: Sequence[int], bounds: torch.Tensor, longest: int, *, even: bool
    ) -> None:
        super().__init__(lengths, bounds.device)
        self._longest = longest
        self._of_one_length = even
        self._static_bounds = bounds

    @cached_property
    def _bounds(self) -> torch.Tensor:
        return self._static_bounds.to(torch.int32)

    @property
    def longest(self) -> int:
        return self._longest

    @property
    def _even(self) -> bool:
        # Not asked of the lengths: they may happen to be equal, and a replay's not.
        return self._of_one_length


_no_cudnn: list[bool] = []
"""Not empty once cuDNN has refused: torch says so for a whole build or device."""


def _widened(x_NHK: torch.Tensor, width: int) -> torch.Tensor:
    missing = width - x_NHK.shape[-1]
    return F.pad(x_NHK, (0, missing)) if missing else x_NHK


def _cut(x_1HNK: torch.Tensor, group: _Group) -> torch.Tensor:
    """[1, H, N, K] -> [S, H, T, K], where nothing has to be moved."""
    _, heads, _, width = x_1HNK.shape
    return x_1HNK[0].view(heads, group.sequences, group.longest, width).transpose(0, 1)


class _Padded(torch.autograd.Function):
    """[N, H, K] -> [S, T, H, K]: a gather whose gradient is a gather too.

    Padded places repeat a token; their gradient is exactly zero (nothing reads them and no token
    attends to them), so leaving them out is no approximation, and nothing is summed.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x_NHK: torch.Tensor, group: _Group
    ) -> torch.Tensor:
        ctx.group = group  # type: ignore[attr-defined]
        ctx.rows = x_NHK.shape[0]  # type: ignore[attr-defined]
        padded = x_NHK.index_select(0, group.from_row)
        return padded.view(group.sequences, group.longest, *x_NHK.shape[1:])

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, *grads: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        group: _Group = ctx.group  # type: ignore[attr-defined]
        grad = grads[0].flatten(0, 1).index_select(0, group.to_row)
        if len(group.tokens) == ctx.rows:  # type: ignore[attr-defined]
            order = group.tokens
            whole = torch.empty_like(grad)
            return whole.index_copy_(0, order, grad), None
        whole = grad.new_zeros(ctx.rows, *grad.shape[1:])  # type: ignore[attr-defined]
        return whole.index_copy_(0, group.tokens, grad), None
