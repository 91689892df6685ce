"""The table ``[model]`` of a recipe <-> `NetworkConfig`.

Its keys are those of Hugging Face's config.json. What a small network that is trained from nothing
need not say has a default here; what is known only later (the vocabulary) is filled in when it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from forethought.checkpoints.network_config import (
    DeepseekConfig,
    DenseConfig,
    DtypeName,
    Llama3Scaling,
    NetworkConfig,
    YarnScaling,
)
from forethought.recipes.recipe import nearest_of

ROUND_TO: Final = 64
"""Rows of the embedding come in multiples of this: rows that no token has cost less than odd
shapes do."""

MODEL_TYPES: Final = ("deepseek_v3", "deepseek_v2", "llama", "qwen2", "qwen3")

FROM_ELSEWHERE: Final[Mapping[str, str]] = {
    "vocab_size": "the size comes from the tokenizer that the run trains: set tokenizer.vocab_size",
    "bos_token_id": "the id comes from the tokenizer that the run trains: leave it out",
    "eos_token_id": "the id comes from the tokenizer that the run trains: leave it out",
    "eos_token_ids": "the ids come from the tokenizer that the run trains: leave them out",
    "pad_token_id": "the id comes from the tokenizer that the run trains: leave it out",
    "dtype": "it is the whole run's: write dtype at the top of the file",
    "torch_dtype": "it is the whole run's: write dtype at the top of the file",
    "quantization": "a network is trained unquantised, and exported quantised: leave it out",
    "quantization_config": "a network is trained unquantised, and exported quantised: leave it out",
}
"""Keys that the table may not have, and where their values come from."""

_LATER: Final = ("vocab_size", "bos_token_id", "eos_token_ids", "dtype", "quantization")
_DERIVED: Final = ("qk_norm", "output_bias")
"""Fields that follow from ``model_type`` and ``attention_bias``."""

_DEFAULTS: Final[Mapping[str, object]] = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
}
_MOE_DEFAULTS: Final[Mapping[str, object]] = {
    "q_lora_rank": None,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "first_k_dense_replace": 1,
}
_GATES: Final[Mapping[str, Mapping[str, object]]] = {
    "deepseek_v3": {
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "num_nextn_predict_layers": 1,
    },
    "deepseek_v2": {
        "scoring_func": "softmax",
        "topk_method": "greedy",
        "norm_topk_prob": False,
        "num_nextn_predict_layers": 0,
    },
}
_SCALINGS: Final[Mapping[str, type[YarnScaling] | type[Llama3Scaling]]] = {
    "yarn": YarnScaling,
    "llama3": Llama3Scaling,
}

Table = Mapping[str, object]


def placeholder_rows(vocab_size: int) -> int:
    """Rows of the embedding for a vocabulary of at most ``vocab_size`` tokens."""
    return -(-vocab_size // ROUND_TO) * ROUND_TO


def misplaced(table: Table) -> dict[str, str]:
    """Keys (dotted) whose presence or kind is wrong, each with its remedy, in the table's order."""
    model_type = table.get("model_type", MODEL_TYPES[0])
    if model_type not in MODEL_TYPES:
        return {
            "model_type": f"is {_quoted(model_type)}; {nearest_of(str(model_type), MODEL_TYPES)}"
        }
    known = known_keys(model_type)
    found: dict[str, str] = {}
    for key in table:
        if key in FROM_ELSEWHERE:
            found[key] = f"does not belong here: {FROM_ELSEWHERE[key]}"
        elif key not in known:
            found[key] = f"is no key of a {model_type}; {nearest_of(key, known)}"
    scaling = table.get("rope_scaling")
    if isinstance(scaling, Mapping):
        kind = scaling.get("rope_type")
        kinds = [name for name in _SCALINGS if name != "llama3" or not _is_moe(model_type)]
        if kind not in kinds:
            found["rope_scaling.rope_type"] = (
                f"is {_quoted(kind)}; a {model_type} knows {' and '.join(kinds)}"
            )
    elif scaling is not None:
        found["rope_scaling"] = "must be a table with rope_type and factor"
    return found


def known_keys(model_type: object) -> list[str]:
    """The keys that the table of a network of this type may have."""
    fields = _class_of(model_type).model_fields
    return [key for key in fields if key not in _LATER and key not in _DERIVED]


def _quoted(value: object) -> str:
    return "missing" if value is None else repr(value)[:60]


def _is_moe(model_type: object) -> bool:
    return str(model_type).startswith("deepseek")


def network_class(table: Table) -> type[DenseConfig] | type[DeepseekConfig]:
    """The class of the network that a table describes."""
    return _class_of(table.get("model_type", MODEL_TYPES[0]))


def scaling_class(table: Table) -> type[YarnScaling] | type[Llama3Scaling]:
    """The class of its ``rope_scaling``."""
    values = table.get("rope_scaling")
    return _SCALINGS[values["rope_type"] if isinstance(values, Mapping) else "yarn"]


def _class_of(model_type: object) -> type[DenseConfig] | type[DeepseekConfig]:
    return DeepseekConfig if _is_moe(model_type) else DenseConfig


def to_scaling(table: Table) -> YarnScaling | Llama3Scaling | None:
    """``rope_scaling`` of a table that has no `misplaced` key.

    Raises pydantic's ValidationError, whose locations are keys inside of it.
    """
    values = table.get("rope_scaling")
    if not isinstance(values, Mapping):
        return None
    rest = {key: value for key, value in values.items() if key != "rope_type"}
    return scaling_class(table).model_validate(rest)


def to_network(table: Table, vocab_size: int) -> NetworkConfig:
    """The network of a table that has no `misplaced` key, its vocabulary a placeholder.

    Raises pydantic's ValidationError, whose locations are keys of the table.
    """
    model_type = table.get("model_type", MODEL_TYPES[0])
    fields: dict[str, object] = {"model_type": model_type, "vocab_size": vocab_size, **_DEFAULTS}
    if _is_moe(model_type):
        fields |= {**_MOE_DEFAULTS, **_GATES[str(model_type)]}
    else:
        fields |= _dense_defaults(str(model_type), table)
    scaling = to_scaling(table)
    return network_class(table).model_validate({**fields, **table, "rope_scaling": scaling})


def _dense_defaults(model_type: str, table: Table) -> dict[str, object]:
    heads, hidden = table.get("num_attention_heads"), table.get("hidden_size")
    bias = table.get("attention_bias", model_type == "qwen2")
    found = {
        "num_key_value_heads": heads,
        "attention_bias": bias,
        "output_bias": False if model_type == "qwen2" else bias,
        "qk_norm": model_type == "qwen3",
    }
    if isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
        found["head_dim"] = hidden // heads
    return found


def from_network(config: NetworkConfig) -> dict[str, object]:
    """The table of a network, every key that `to_network` takes spelled out; None left out."""
    values: dict[str, object] = config.model_dump(exclude={*_LATER, *_DERIVED}, exclude_none=True)
    scaling = config.rope_scaling
    if scaling is not None:
        shown = scaling.model_dump(exclude={"kind"})
        values["rope_scaling"] = {"rope_type": scaling.kind, **shown}
    return values


def with_vocabulary(
    config: NetworkConfig,
    size: int,
    *,
    bos: int | None,
    eos: int | tuple[int, ...],
    dtype: DtypeName = "float32",
) -> NetworkConfig:
    """``config`` for a tokenizer of ``size`` tokens, rows rounded up to `ROUND_TO`."""
    later: dict[str, object] = {
        "vocab_size": placeholder_rows(size),
        "bos_token_id": bos,
        "eos_token_ids": (eos,) if isinstance(eos, int) else eos,
        "dtype": dtype,
    }
    values = {name: getattr(config, name) for name in type(config).model_fields}
    return type(config).model_validate(values | later)
