"""Hugging Face's `config.json` <-> `NetworkConfig`.

Every key of the file is used, known to change nothing at inference, accepted only with the value
that changes nothing, or refused by name: a checkpoint never runs as something it is not. Keys
that name code (`auto_map`, `*_internal`, paths of Python files) are refused wherever they stand
(rule R15 of the trust notes). Both spellings of the rotary settings are read: `rope_theta` with
`rope_scaling`, and transformers 5's `rope_parameters`. Defaults and meanings follow transformers.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from forethought.checkpoints import folder as folders
from forethought.checkpoints.folder import JSON
from forethought.checkpoints.network_config import (
    DeepseekConfig,
    DenseConfig,
    Llama3Scaling,
    NetworkConfig,
    YarnScaling,
)
from forethought.checkpoints.network_tensors import mtp_layers_present
from forethought.errors import ModelError

ARCHITECTURES: Final[Mapping[str, str]] = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
}

_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
_DEEPSEEK_REQUIRED = (
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "moe_intermediate_size",
    "n_routed_experts",
    "n_shared_experts",
    "num_experts_per_tok",
    "routed_scaling_factor",
    "norm_topk_prob",
    "first_k_dense_replace",
)
_DEEPSEEK_OPTIONAL = (
    "n_group",
    "topk_group",
    "scoring_func",
    "topk_method",
    "moe_layer_freq",
    "num_nextn_predict_layers",
    "rope_interleave",
    "attention_bias",
)
# Other spellings that transformers reads, and the key that they stand for.
_ALIASES = {
    "num_local_experts": "n_routed_experts",
    "num_experts": "n_routed_experts",
    "num_mtp_layers": "num_nextn_predict_layers",
}
# Training, bookkeeping and generation: whatever they say, logits are the same.
_HARMLESS = frozenset(
    {
        *("_attn_implementation_autoset", "_commit_hash", "_name_or_path", "attention_dropout"),
        *("aux_loss_alpha", "do_sample", "ep_size", "finetuning_task", "id2label"),
        *("initializer_range", "is_llama_config", "label2id", "max_length", "max_new_tokens"),
        *("max_window_layers", "min_length", "name_or_path", "num_return_sequences"),
        *("output_attentions", "output_hidden_states", "output_router_logits", "pad_token_id"),
        *("prefix", "repetition_penalty", "return_dict", "router_aux_loss_coef", "seq_aux"),
        *("task_specific_params", "temperature", "tokenizer_class", "top_k", "top_p"),
        *("transformers.js_config", "transformers_version", "unsloth_fixed", "unsloth_version"),
        "use_cache",
    }
)
# Keys that change the numbers, with the values that leave them alone.
_FIXED: Mapping[str, tuple[JSON, ...]] = {
    "hidden_act": ("silu",),
    "pretraining_tp": (1,),
    "partial_rotary_factor": (1,),
    "attn_implementation": ("eager", "sdpa", "flash_attention_2", "flash_attention_3"),
    "_attn_implementation": ("eager", "sdpa", "flash_attention_2", "flash_attention_3"),
    "chunk_size_feed_forward": (0,),
}
_COMMON = (
    *_REQUIRED,
    *("model_type", "architectures", "rms_norm_eps", "tie_word_embeddings", "rope_theta"),
    *("rope_scaling", "rope_parameters", "bos_token_id", "eos_token_id", "torch_dtype", "dtype"),
    *("quantization_config", "num_key_value_heads", "head_dim", "mlp_bias", "attention_bias"),
    *("sliding_window", "use_sliding_window", "layer_types", "initializer_range"),
)
# Keys of `quantization_config`, with the values that are supported (empty: judged elsewhere).
_FP8: Mapping[str, tuple[JSON, ...]] = {
    "quant_method": (),
    "weight_block_size": (),
    "fmt": ("e4m3",),
    "activation_scheme": ("dynamic",),
    # Scales of either format are read as fp32.
    "scale_fmt": ("float", "ue8m0"),
    "expert_dtype": ("fp8",),
}
# Which weights are in blocks is seen from their scales.
_FP8_HARMLESS = frozenset({"modules_to_not_convert", "ignored_layers", "dequantize"})


def read_config(folder: Path) -> NetworkConfig:
    """The network of a Hugging Face folder; EOS ids of `generation_config.json` are added.

    MTP modules count only where the weights bring them: transformers writes 1 into config.json
    whatever it saves.

    Raises UserError if there is no such folder or no config.json in it, ModelError if the network
    is not supported or the file is damaged; each names the file and the key.
    """
    path = folders.check_folder(folder)
    config = parse_config(folders.read_json(path), str(path))
    if isinstance(config, DeepseekConfig) and config.num_nextn_predict_layers:
        names = folders.tensor_names(folder)
        if names is not None:
            modules = mtp_layers_present(config, names)
            config = config.model_copy(update={"num_nextn_predict_layers": modules})
    generation = folder / folders.GENERATION_CONFIG
    if not generation.is_file():
        return config
    values = folders.read_json(generation)
    _refuse_code(values, str(generation))
    more = _token_ids(values.get("eos_token_id"), f"{generation}: eos_token_id")
    merged = tuple(dict.fromkeys((*config.eos_token_ids, *more)))
    if any(not 0 <= token < config.vocab_size for token in more):
        raise ModelError(
            f"{generation}: eos_token_id {max(more)} is not below vocab_size {config.vocab_size}."
        )
    return config.model_copy(update={"eos_token_ids": merged})


def parse_config(values: Mapping[str, JSON], where: str) -> NetworkConfig:
    """The network that a config.json describes. `where` stands in errors (a path).

    Raises ModelError that names the key: unknown model_type, unsupported or impossible values.
    """
    _refuse_code(values, where)
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise ModelError(
            f"{where}: model_type {_shown(model_type)} is not supported; forethought knows "
            f"{', '.join(ARCHITECTURES)}."
        )
    _check_architectures(values.get("architectures"), where)
    reader = _Reader(values, where, model_type)
    fields: dict[str, object] = reader.common()
    deepseek = model_type.startswith("deepseek")
    fields |= reader.deepseek(fields) if deepseek else reader.dense(fields)
    reader.check_rest()
    try:
        if deepseek:
            return DeepseekConfig.model_validate(fields)
        return DenseConfig.model_validate(fields)
    except ValidationError as error:
        raise ModelError(f"{where}: {_first(error)}.") from None


def _first(error: ValidationError) -> str:
    """The first thing pydantic has to say, with its key."""
    detail = error.errors(include_url=False)[0]
    # Unions put the class they tried into the location; people know only the file's own keys.
    tried = {"Llama3Scaling", "YarnScaling"}
    key = ".".join(str(part) for part in detail["loc"] if part not in tried)
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{key}: {message}" if key else message
    if detail["type"] == "missing":
        return f"{key} is missing"
    return f"{key} is {_shown(detail['input'])}: {message[0].lower()}{message[1:]}"


def _shown(value: object) -> str:
    """A value as the file spells it, or nearly, and not too long."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _refuse_code(values: Mapping[str, JSON], where: str) -> None:
    for path, key, value in _walk(values, ""):
        path = folders.printable(path, 120)
        code = key == "auto_map" or key.endswith("_internal") or key == "custom_pipelines"
        if code and value is not None:
            raise ModelError(
                f"{where}: {path} names code of its own, which forethought never runs; it has its "
                f"own networks: remove {_shown(key)} from the file if you trust the weights."
            )
        if isinstance(value, str) and value.endswith(".py"):
            raise ModelError(
                f"{where}: {path} names the Python file {_shown(value)}, which forethought never "
                f"runs: remove {_shown(key)} from the file if you trust the weights."
            )


def _walk(values: Mapping[str, JSON], prefix: str) -> Iterator[tuple[str, str, JSON]]:
    """Every key of nested objects and lists: its path, its name, its value."""
    stack: list[tuple[str, str, JSON]] = [(key, key, value) for key, value in values.items()]
    while stack:
        path, key, value = stack.pop()
        yield prefix + path, key, value
        if isinstance(value, dict):
            stack += [(f"{path}.{name}", name, item) for name, item in value.items()]
        elif isinstance(value, list):
            stack += [(path, key, item) for item in value]


def _check_architectures(value: JSON, where: str) -> None:
    if value is None or value == []:
        return
    names = value if isinstance(value, list) else [value]
    if not any(isinstance(name, str) and name.endswith("ForCausalLM") for name in names):
        raise ModelError(
            f"{where}: architectures {_shown(value)} is not supported: forethought runs language "
            "models (...ForCausalLM) only."
        )


def _token_ids(value: JSON, what: str) -> tuple[int, ...]:
    found = value if isinstance(value, list) else [] if value is None else [value]
    ids = [token for token in found if isinstance(token, int) and not isinstance(token, bool)]
    if len(ids) != len(found):
        raise ModelError(f"{what} is {_shown(value)}: expected a token id or a list of them.")
    return tuple(ids)


class _Reader:
    """Takes the keys of one config.json; what nobody took is judged at the end."""

    def __init__(self, values: Mapping[str, JSON], where: str, model_type: str) -> None:
        self.source = values
        self.rest = dict(values)
        self.where = where
        self.model_type = model_type
        self.known = {*_COMMON, *_HARMLESS, *_FIXED}

    def error(self, text: str) -> ModelError:
        return ModelError(f"{self.where}: {folders.printable(text)}")

    def take(self, *keys: str) -> dict[str, object]:
        """Keys that must be there, null or not."""
        for key in keys:
            if key not in self.rest:
                near = difflib.get_close_matches(key, self.rest, n=1, cutoff=0.8)
                hint = f" (it has {near[0]!r})" if near else ""
                raise self.error(f"{key} is missing{hint}, and it has no safe default.")
        return {key: self.rest.pop(key) for key in keys}

    def optional(self, *keys: str) -> dict[str, object]:
        """Those of the keys that are there and not null."""
        found = {key: self.rest.pop(key, None) for key in keys}
        return {key: value for key, value in found.items() if value is not None}

    def only(self, key: str, *accepted: object) -> None:
        """Drop `key`, which may be absent, null or one of `accepted`."""
        value = self.rest.pop(key, None)
        if value is None:
            return
        for item in accepted:
            # True == 1 in Python, and a file that says so is still wrong.
            if value == item and isinstance(value, bool) == isinstance(item, bool):
                return
        raise self.error(
            f"{key} is {_shown(value)}, which is not supported in {self.model_type}: only "
            f"{' or '.join(map(_shown, accepted))}."
        )

    def common(self) -> dict[str, object]:
        fields = self.take(*_REQUIRED)
        fields["rms_norm_eps"] = 1e-6
        fields["tie_word_embeddings"] = False
        names = ("rms_norm_eps", "tie_word_embeddings", "initializer_range", "bos_token_id")
        fields |= self.optional(*names)
        fields["model_type"] = self.rest.pop("model_type")
        self.rest.pop("architectures", None)
        eos = self.rest.pop("eos_token_id", None)
        fields["eos_token_ids"] = _token_ids(eos, f"{self.where}: eos_token_id")
        fields |= self._dtype() | self._rope() | self._quantization()
        for key, accepted in _FIXED.items():
            self.only(key, *accepted)
        return fields

    def dense(self, common: Mapping[str, object]) -> dict[str, object]:
        heads, hidden = common["num_attention_heads"], common["hidden_size"]
        fields: dict[str, object] = {"num_key_value_heads": heads}
        if self.model_type != "llama":
            # transformers' default here is 32 whatever the other sizes are.
            if "num_key_value_heads" not in self.rest:
                self.take("num_key_value_heads")
            self._no_windows()
        fields |= self.optional("num_key_value_heads")
        if self.model_type == "qwen3":
            fields["head_dim"] = 128
        elif isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
            fields["head_dim"] = hidden // heads
        fields |= self.optional("head_dim") | self._biases()
        fields["qk_norm"] = self.model_type == "qwen3"
        return fields

    def _no_windows(self) -> None:
        self.only("use_sliding_window", False)
        self.rest.pop("sliding_window", None)
        layers = self.rest.pop("layer_types", None)
        if layers is not None and not (
            isinstance(layers, list) and all(kind == "full_attention" for kind in layers)
        ):
            raise self.error(
                f"layer_types {_shown(layers)} is not supported: only 'full_attention' in every "
                "layer."
            )

    def _biases(self) -> dict[str, object]:
        if self.model_type == "qwen2":
            self.only("attention_bias", True)
            self.only("mlp_bias", False)
            return {"attention_bias": True}
        bias = self.optional("attention_bias").get("attention_bias", False)
        fields = {"attention_bias": bias, "output_bias": bias}
        if self.model_type == "llama":
            return fields | self.optional("mlp_bias")
        self.only("mlp_bias", False)
        return fields

    def deepseek(self, common: Mapping[str, object]) -> dict[str, object]:
        self.known |= {*_DEEPSEEK_REQUIRED, *_DEEPSEEK_OPTIONAL}
        for alias, key in _ALIASES.items():
            if alias in self.rest:
                self.rest.setdefault(key, self.rest.pop(alias))
        fields = self.take(*_DEEPSEEK_REQUIRED)
        if self.model_type == "deepseek_v2":
            fields |= {"scoring_func": "softmax", "topk_method": "greedy"}
            # One group is no grouping: what null means with the greedy method.
            fields |= {"n_group": 1, "topk_group": 1}
        else:
            fields |= {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
            for key in ("n_group", "topk_group"):
                if self.rest.get(key) is None:
                    raise self.error(f"{key} is missing, and it has no safe default.")
        fields |= self.optional(*_DEEPSEEK_OPTIONAL)
        self.only("mlp_bias", False)
        self.only("num_key_value_heads", common["num_attention_heads"])
        # transformers derives both, whatever the file says.
        self.rest.pop("head_dim", None)
        self.rest.pop("qk_head_dim", None)
        return fields

    def _dtype(self) -> dict[str, object]:
        found = self.optional("torch_dtype", "dtype")
        name = found.get("dtype", found.get("torch_dtype"))
        if name is None:
            return {}
        if name not in ("float32", "bfloat16", "float16"):
            raise self.error(
                f"dtype {_shown(name)} is not supported: only float32, bfloat16 and float16."
            )
        return {"dtype": name}

    def _rope(self) -> dict[str, object]:
        old = self.rest.pop("rope_scaling", None)
        new = self.rest.pop("rope_parameters", None)
        theta = self.optional("rope_theta").get("rope_theta")
        for key, value in (("rope_scaling", old), ("rope_parameters", new)):
            if value is not None and not isinstance(value, dict):
                raise self.error(f"{key} is {_shown(value)}: expected an object.")
        if old and new and old != new:
            raise self.error("rope_scaling and rope_parameters differ: keep one of them.")
        name = "rope_parameters" if new else "rope_scaling"
        chosen = new or old
        values = dict(chosen) if isinstance(chosen, dict) else {}
        inner = values.pop("rope_theta", None)
        if inner is not None and theta is not None and inner != theta:
            raise self.error(f"rope_theta is {theta}, and {inner} in {name}: keep one of them.")
        fields: dict[str, object] = {"rope_theta": 10000.0}
        if inner is not None or theta is not None:
            fields["rope_theta"] = theta if inner is None else inner
        maximum = self.source.get("max_position_embeddings")
        fields["rope_scaling"] = self._scaling(name, values, maximum)
        return fields

    def _scaling(self, name: str, values: dict[str, JSON], maximum: JSON) -> object:
        """`rope_scaling` without its theta, as the class of its kind (or what pydantic refuses)."""
        values = {key: value for key, value in values.items() if value is not None}
        kind = values.pop("rope_type", values.get("type", "default"))
        values.pop("type", None)
        if values.pop("partial_rotary_factor", 1) != 1:
            raise self.error(f"{name}.partial_rotary_factor is not supported: only 1.")
        deepseek = self.model_type.startswith("deepseek")
        if kind in ("default", "none"):
            model: type[Llama3Scaling] | type[YarnScaling] | None = None
        elif kind == "llama3" and not deepseek:
            model = Llama3Scaling
        elif kind == "yarn":
            model = YarnScaling
            values = self._yarn(name, values, maximum)
        else:
            kinds = "default and yarn" if deepseek else "default, llama3 and yarn"
            raise self.error(
                f"{name} asks for {_shown(kind)}, a scaling that is not supported in "
                f"{self.model_type}: only {kinds}."
            )
        known = {} if model is None else model.model_fields
        for key in values:
            if key not in known or key == "kind":
                raise self.error(f"{name}.{key} is not supported{_nearest(key, known)}.")
        if model is None:
            return None
        try:
            return model.model_validate(values)
        except ValidationError as error:
            raise self.error(f"{name}: {_first(error)}.") from None

    def _yarn(self, name: str, values: dict[str, JSON], maximum: JSON) -> dict[str, JSON]:
        values = {"original_max_position_embeddings": maximum, **values}
        if values.pop("truncate", True) is not True:
            raise self.error(f"{name}.truncate is supported as true only.")
        if bool(values.get("mscale_all_dim")) != bool(values.get("mscale")):
            # transformers ignores either without the other; released code does not.
            if values.get("mscale", 1) != 1 or values.get("mscale_all_dim"):
                raise self.error(
                    f"{name}: mscale and mscale_all_dim are supported together only, because "
                    "readers differ on one without the other."
                )
            values.pop("mscale", None)
        if not self.model_type.startswith("deepseek") and values.get("mscale_all_dim"):
            raise self.error(f"{name}.mscale_all_dim is not supported in {self.model_type}.")
        for key in ("beta_fast", "beta_slow", "mscale_all_dim", "mscale"):
            # 0 stands for the default in transformers.
            if values.get(key) == 0 and not isinstance(values[key], bool):
                del values[key]
        factor = values.pop("attention_factor", None)
        if factor is not None:
            self._check_attention_factor(name, values, factor)
        return values

    def _check_attention_factor(self, name: str, values: Mapping[str, JSON], given: JSON) -> None:
        """`attention_factor` may only say what follows from the other keys."""
        scale = values.get("factor")
        numbers = (given, scale, values.get("mscale", 1), values.get("mscale_all_dim", 0))
        checked = [x for x in numbers if isinstance(x, int | float) and x >= 0]
        if len(checked) == 4 and checked[1] >= 1:
            log = 0.1 * math.log(checked[1])
            derived = (log * checked[2] + 1) / (log * checked[3] + 1)
            if math.isclose(checked[0], derived, rel_tol=1e-6):
                return
        raise self.error(f"{name}.attention_factor {_shown(given)} is not supported: leave it out.")

    def _quantization(self) -> dict[str, object]:
        values = self.rest.pop("quantization_config", None)
        if values is None or values == {}:
            return {}
        name = "quantization_config"
        if not isinstance(values, dict):
            raise self.error(f"{name} is {_shown(values)}: expected an object.")
        method = values.get("quant_method")
        if method != "fp8":
            raise self.error(
                f"{name} asks for {_shown(method)}, which is not supported: only DeepSeek's fp8 in "
                "blocks; take the model's unquantised weights, or a GGUF of it."
            )
        for key, value in values.items():
            accepted = _FP8.get(key)
            if key in _FP8_HARMLESS or value is None or value is False:
                continue
            if accepted is None:
                raise self.error(f"{name}.{key} is not supported{_nearest(key, _FP8)}.")
            if accepted and value not in accepted:
                raise self.error(
                    f"{name}.{key} {_shown(value)} is not supported: only "
                    f"{' or '.join(map(_shown, accepted))}."
                )
        block = values.get("weight_block_size")
        if not isinstance(block, list) or len(block) != 2:
            raise self.error(
                f"{name}.weight_block_size is {_shown(block)}: expected two sizes, as [128, 128]."
            )
        return {"quantization": {"block_size": tuple(block)}}

    def check_rest(self) -> None:
        """Refuse every key that nobody took, unless it is harmless or switched off."""
        for key, value in self.rest.items():
            if key in _HARMLESS or value is None or value is False:
                continue
            raise self.error(
                f"the key {_shown(key)} ({_shown(value)}) is not known in {self.model_type} and "
                f"may change its numbers{_nearest(key, self.known)}; remove it if it does not."
            )


def _nearest(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, sorted({*known} - {key}), n=1, cutoff=0.7)
    return f" (the nearest known key is {near[0]!r})" if near else ""


def to_hf(config: NetworkConfig) -> dict[str, JSON]:
    """What `config.json` says of this network, in the spelling that every reader knows.

    `parse_config` gives it back, and transformers makes an equal network of it.
    """
    eos = list(config.eos_token_ids)
    values: dict[str, JSON] = {
        "architectures": [ARCHITECTURES[config.model_type]],
        "model_type": config.model_type,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": None if not eos else eos[0] if len(eos) == 1 else [*eos],
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "torch_dtype": config.dtype,
        "use_cache": True,
    }
    plain = (*_REQUIRED, "rms_norm_eps", "tie_word_embeddings", "rope_theta", "initializer_range")
    for key in plain:
        values[key] = getattr(config, key)
    values["rope_scaling"] = _scaling_to_hf(config.rope_scaling)
    if isinstance(config, DeepseekConfig):
        values |= _deepseek_to_hf(config)
    else:
        values |= _dense_to_hf(config)
    if config.quantization is not None:
        values["quantization_config"] = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": list(config.quantization.block_size),
        }
    return values


def _scaling_to_hf(scaling: Llama3Scaling | YarnScaling | None) -> JSON:
    if scaling is None:
        return None
    values: dict[str, JSON] = {"rope_type": scaling.kind, **scaling.model_dump(exclude={"kind"})}
    if isinstance(scaling, YarnScaling) and scaling.mscale_all_dim == 0:
        # transformers reads the two together or not at all.
        del values["mscale"], values["mscale_all_dim"]
    return values


def _dense_to_hf(config: DenseConfig) -> dict[str, JSON]:
    values: dict[str, JSON] = {
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
    }
    if config.model_type != "qwen2":
        values["attention_bias"] = config.attention_bias
    if config.model_type == "llama":
        values["mlp_bias"] = config.mlp_bias
    else:
        values["use_sliding_window"] = False
    return values


def _deepseek_to_hf(config: DeepseekConfig) -> dict[str, JSON]:
    values: dict[str, JSON] = {
        key: getattr(config, key) for key in (*_DEEPSEEK_REQUIRED, *_DEEPSEEK_OPTIONAL)
    }
    values["num_key_value_heads"] = config.num_attention_heads
    if config.model_type == "deepseek_v2":
        del values["num_nextn_predict_layers"], values["rope_interleave"]
    return values
