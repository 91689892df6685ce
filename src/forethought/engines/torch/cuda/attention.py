"""One token of each row attends to the row's pages.

B: rows of the bucket, H: query heads, G: key heads, K: width of a key, V: width of a value,
C: width of a cached token (K + V, or K where values are the leading columns of keys), P: pages of
the pool, W: pages of a row, S: tokens looked at, F: fields of the state, R: rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from forethought.engines.torch.cuda.pages import PAGE
from forethought.engines.torch.cuda.schedule import ALIVE, LENGTH

_PROGRAMS = 264
"""Two for each multiprocessor of an H100: with fewer, sequences are split among programs."""
_MOST_SPLITS = 16


def paged_attention(
    q_BHK: torch.Tensor,
    pool_PGTC: torch.Tensor,
    table_RW: torch.Tensor,
    state_FR: torch.Tensor,
    *,
    key_width: int,
    latent: bool,
    scale: float,
) -> torch.Tensor:
    """Attention of the newest token of each row on all that is stored of it, itself included.

    Row b has ``state[LENGTH, b]`` tokens and the one that was just stored behind them; rows that
    are not alive give anything finite. ``latent``: values are the keys themselves, and the result
    has their width. [B, H, V], of the dtype of the queries. On CUDA in 16 or 32 bits a Triton
    kernel computes it, elsewhere torch on gathered pages; sums are in float32 or wider.
    """
    if q_BHK.is_cuda and q_BHK.dtype != torch.float64:
        from forethought.engines.torch.cuda.triton_attention import decode_attention

        batch, groups = q_BHK.shape[0], pool_PGTC.shape[1]
        return decode_attention(
            q_BHK, pool_PGTC, table_RW, state_FR, key_width, latent, scale, splits(batch * groups)
        )
    return gathered_attention(
        q_BHK, pool_PGTC, table_RW, state_FR, key_width=key_width, latent=latent, scale=scale
    )


def splits(programs: int) -> int:
    """Among how many programs a sequence is split, if there are ``programs`` without that."""
    return min(_MOST_SPLITS, 1 << max(0, (_PROGRAMS // programs).bit_length() - 1))


def gathered_attention(
    q_BHK: torch.Tensor,
    pool_PGTC: torch.Tensor,
    table_RW: torch.Tensor,
    state_FR: torch.Tensor,
    *,
    key_width: int,
    latent: bool,
    scale: float,
) -> torch.Tensor:
    """The same from torch alone, which copies every page that is looked at: the reference."""
    batch = len(q_BHK)
    seen_B = torch.where(state_FR[ALIVE, :batch] != 0, state_FR[LENGTH, :batch] + 1, 1)
    width = table_RW.shape[1]
    if not q_BHK.is_cuda:  # where looking costs nothing
        width = min(width, -(-int(seen_B.max()) // PAGE))
    pages_BWGTC = pool_PGTC[table_RW[:batch, :width].long()]
    stored_BGSC = pages_BWGTC.transpose(1, 2).flatten(2, 3)
    k_BGSK = stored_BGSC[..., :key_width]
    v_BGSV = k_BGSK if latent else stored_BGSC[..., key_width:]
    unseen_BS = torch.arange(width * PAGE, device=q_BHK.device) >= seen_B[:, None]
    mask_BS = torch.zeros(unseen_BS.shape, dtype=q_BHK.dtype, device=q_BHK.device)
    out_BH1V = F.scaled_dot_product_attention(
        q_BHK[:, :, None],
        k_BGSK,
        v_BGSV,
        mask_BS.masked_fill_(unseen_BS, -torch.inf)[:, None, None],
        scale=scale,
        enable_gqa=q_BHK.shape[1] != pool_PGTC.shape[1],
    )
    return out_BH1V[:, :, 0]
