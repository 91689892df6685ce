"""What a checkpoint's network is, from its config or header alone: no weights, no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from forethought.cli.terminal import columns, print_json, show, size
from forethought.errors import ForethoughtError, UserError

if TYPE_CHECKING:
    from forethought.checkpoints.network_config import NetworkConfig


def read_network(path: Path) -> NetworkConfig:
    """The network in a Hugging Face folder or a GGUF file.

    Raises UserError or ModelError naming the file and the key that is wrong or not supported.
    """
    if path.is_dir():
        from forethought.checkpoints.hf_config import read_config

        return read_config(path)
    from forethought.checkpoints.gguf_config import config_from_header
    from forethought.checkpoints.gguf_header import read_header

    return config_from_header(read_header(path))


def folder_facts(folder: Path, context: int) -> dict[str, Any]:
    """What `models show` says of a folder: the keys of a GGUF's header, memory as float32."""
    from forethought.checkpoints.folder import open_folder
    from forethought.checkpoints.network_tensors import (
        cache_bytes_per_token,
        count_parameters,
        load_bytes,
    )

    config = read_network(folder)
    tokens = min(context, config.max_position_embeddings)
    weights = load_bytes(config, "float32")
    cache = tokens * cache_bytes_per_token(config, 4)
    facts: dict[str, Any] = {
        "architecture": config.model_type,
        "quant": "fp8" if config.quantization is not None else config.dtype,
        "parameters": count_parameters(config).total,
        "layers": config.num_hidden_layers,
        "vocabulary": config.vocab_size,
        "trained_context": config.max_position_embeddings,
        "chat_template": _has_template(folder),
        "context": tokens,
        "memory_bytes": weights + cache,
        "memory_dtype": "float32",
        "memory": {"weights": weights, "cache": cache, "compute": 0},
    }
    try:
        open_folder(folder).require_tokenizer()
    except ForethoughtError as error:
        facts["problem"] = str(error)
    return facts


def _has_template(folder: Path) -> bool:
    from forethought.checkpoints.folder import read_json

    if (folder / "chat_template.jinja").is_file():
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(read_json(config).get("chat_template"))


def network_facts(config: NetworkConfig) -> dict[str, Any]:
    """Shape, parameters and every size in bytes, as plain data."""
    from forethought.checkpoints.gguf_config import refuse_unexportable
    from forethought.checkpoints.network_tensors import (
        GGUF_BLOCKS,
        cache_bytes_per_token,
        count_parameters,
        gguf_bytes,
        load_bytes,
    )

    count = count_parameters(config)
    facts: dict[str, Any] = {
        "architecture": config.model_type,
        "shape": _shape(config),
        "parameters": {
            "total": count.total,
            "active": count.active,
            "embedding": count.embedding,
            "head": count.head,
            "mtp": count.mtp,
        },
        "cache_bytes_per_token": {
            "bfloat16": cache_bytes_per_token(config, 2),
            "float32": cache_bytes_per_token(config, 4),
        },
        "load_bytes": {
            "float32": load_bytes(config, "float32"),
            "bfloat16": load_bytes(config, "bfloat16"),
        },
        "gguf_bytes": None,
        "gguf_problem": None,
    }
    try:
        refuse_unexportable(config)
    except UserError as error:
        facts["gguf_problem"] = str(error)
    else:
        facts["gguf_bytes"] = {kind: gguf_bytes(config, kind) for kind in GGUF_BLOCKS}
    return facts


def _shape(config: NetworkConfig) -> dict[str, Any]:
    from forethought.checkpoints.network_config import DenseConfig

    shape: dict[str, Any] = {
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "mlp_width": config.intermediate_size,
        "heads": config.num_attention_heads,
    }
    if isinstance(config, DenseConfig):
        shape |= {
            "kv_heads": config.num_key_value_heads,
            "head_width": config.head_dim,
            "qkv_bias": config.attention_bias,
            "qk_norm": config.qk_norm,
        }
    else:
        shape |= {
            "head_width": config.qk_head_dim,
            "head_width_without_position": config.qk_nope_head_dim,
            "head_width_rotary": config.qk_rope_head_dim,
            "value_width": config.v_head_dim,
            "kv_latent": config.kv_lora_rank,
            "q_latent": config.q_lora_rank,
            "experts": config.n_routed_experts,
            "experts_per_token": config.num_experts_per_tok,
            "shared_experts": config.n_shared_experts,
            "expert_width": config.moe_intermediate_size,
            "expert_groups": config.n_group,
            "groups_per_token": config.topk_group,
            "first_dense_layers": config.first_k_dense_replace,
            "mtp_modules": config.num_nextn_predict_layers,
        }
    scaling = config.rope_scaling
    return shape | {
        "vocabulary": config.vocab_size,
        "context": config.max_position_embeddings,
        "tied_embeddings": config.tie_word_embeddings,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling is None else f"{scaling.kind} x {scaling.factor:g}",
    }


def show_params(name: str, path: Path, *, as_json: bool) -> int:
    """Print the facts of the network at ``path``; the exit code."""
    facts = {"name": name, "path": str(path), **network_facts(read_network(path))}
    if as_json:
        print_json(facts, indent=2)
    else:
        show(_as_text(facts))
    return 0


def _as_text(facts: dict[str, Any]) -> str:
    rows = [[key, str(facts[key])] for key in ("name", "path", "architecture")]
    for key, value in facts["shape"].items():
        if value is None:
            continue
        shown = ("yes" if value else "no") if isinstance(value, bool) else f"{value}"
        shown = f"{value:,}" if type(value) is int else shown
        rows.append([key.replace("_", " "), shown])
    count = facts["parameters"]
    active = "" if count["active"] == count["total"] else f", {count['active']:,} active per token"
    rows.append(["parameters", f"{count['total']:,}{active}"])
    rows.append(["of them embedding", f"{count['embedding']:,}"])
    tied = facts["shape"]["tied_embeddings"]
    rows.append(["of them head", "the embedding" if tied else f"{count['head']:,}"])
    if count["mtp"]:
        rows.append(["MTP module, beside them", f"{count['mtp']:,}"])
    for kind, amount in facts["cache_bytes_per_token"].items():
        kinds = "f16, bfloat16" if kind == "bfloat16" else kind
        rows.append([f"cache a token, {kinds}", f"{amount:,} bytes"])
    for kind, amount in facts["load_bytes"].items():
        rows.append([f"memory to load, {kind}", size(amount)])
    for kind, amount in (facts["gguf_bytes"] or {}).items():
        rows.append([f"GGUF, {kind}", size(amount)])
    if facts["gguf_problem"]:
        rows.append(["GGUF", facts["gguf_problem"]])
    return columns(rows)
