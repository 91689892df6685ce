"""DeepSeek-V3: latent attention, a mixture of experts, multi-token prediction. V2 as well.

`mla`, `gate`, `experts`, `decoder` and `mtp` are the parts, `network` the whole, `balance` what
training needs to keep the experts evenly busy. Source: arXiv:2412.19437.
"""

from forethought.models.deepseek_v3.network import DeepseekV3

__all__ = ["DeepseekV3"]
