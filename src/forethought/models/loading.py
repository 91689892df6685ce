"""Networks from checkpoints and back: `build`, `load`, `load_weights`, `save`.

A network is made on the `meta` device, then filled tensor by tensor, biggest first: at any moment
memory holds what is filled and one stored tensor. The values are always copied: a network that is
trained must not write to a mapped file.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from forethought.checkpoints.network_config import DeepseekConfig, DenseConfig, NetworkConfig
from forethought.checkpoints.network_tensors import mtp_layers_present
from forethought.checkpoints.weights import Weights
from forethought.errors import ModelError, UserError
from forethought.models.causal_lm import CausalLM, Source
from forethought.models.layers import initialise

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def skeleton(
    config: NetworkConfig, dtype: torch.dtype | None = None, *, mtp: bool = False
) -> CausalLM:
    """The network of a config on the `meta` device: shapes and dtypes, no memory.

    `dtype` None takes the config's. `mtp` adds DeepSeek's MTP module; UserError where the config
    has none.
    """
    if mtp and not getattr(config, "num_nextn_predict_layers", 0):
        raise UserError(f"this {config.model_type} has no MTP module: leave mtp off")
    with torch.device("meta"):
        network = _network(config, mtp)
    network.to(dtype or DTYPES[config.dtype])
    for name, tensor in list(_tensors(network)):
        if name.rpartition(".")[2] in network.float32_names:
            _replace(network, name, tensor.detach().float())
    return network


def build(
    config: NetworkConfig,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    mtp: bool = False,
    generator: torch.Generator | None = None,
) -> CausalLM:
    """A network to be trained from nothing: values drawn with the config's `initializer_range`.

    `device="meta"` gives shapes only. Raises UserError for a device that is not there, ModelError
    when there is too little memory.
    """
    place = usable_device(device)
    network = skeleton(config, dtype, mtp=mtp)
    if place.type == "meta":
        return network
    with _MemorySentence(network, place):
        network.to_empty(device=place)
    initialise(network, config.initializer_range, generator)
    return network


def load(
    source: Path | str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    mtp: bool = False,
) -> CausalLM:
    """The network in a Hugging Face folder or a GGUF file (dequantised), ready to call or train.

    `dtype` None keeps what the config says. `mtp` brings DeepSeek's MTP module along; without it
    the config of the network says that there is none. Raises UserError for a wrong path or device
    and for an `mtp` that the checkpoint lacks, ModelError for a checkpoint that is damaged,
    incomplete or of an unsupported architecture.
    """
    place = usable_device(device)
    path = Path(source)
    weights, config = open_checkpoint(path)
    try:
        if isinstance(config, DeepseekConfig):
            modules = mtp_layers_present(config, set(weights.names())) if mtp else 0
            config = config.model_copy(update={"num_nextn_predict_layers": modules})
        network = skeleton(config, dtype, mtp=mtp)
        return load_weights(network, weights, device=place, where=path)
    finally:
        weights.close()


def open_checkpoint(source: Path) -> tuple[Weights, NetworkConfig]:
    """The stored tensors of a folder or GGUF and the config they fit; the caller closes them.

    Raises UserError where `source` is neither, ModelError where it is damaged or not supported.
    """
    if source.is_dir():
        from forethought.checkpoints.hf_config import read_config
        from forethought.checkpoints.safetensors_weights import SafetensorsWeights, check_tensors

        config = read_config(source)
        folder = SafetensorsWeights(source, config)
        try:
            check_tensors(folder, config, source)
        except BaseException:
            folder.close()
            raise
        return folder, config
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    if source.suffix.lower() != ".gguf":
        raise UserError(
            f"{source}: not a checkpoint; give a Hugging Face folder (config.json and "
            "*.safetensors) or a .gguf file"
        )
    from forethought.checkpoints.gguf_weights import GGUFWeights

    file = GGUFWeights(source)
    return file, file.config


def load_weights(
    network: CausalLM,
    weights: Weights,
    *,
    device: torch.device | str = "cpu",
    where: Path | str = "the checkpoint",
) -> CausalLM:
    """Fill a network from stored tensors, in place, and return it.

    Tensors on `meta` are made on `device`; others keep their memory. Every place of the network is
    filled, or nothing is: a missing tensor or a wrong shape raises ModelError before the first is
    read. A NaN or an infinity raises ModelError that names its tensor. `where` stands in errors.
    """
    from forethought.checkpoints.safetensors_weights import check_finite

    place = usable_device(device)
    places = dict(_tensors(network))
    filling: dict[str, list[Source]] = {}
    for source in network.parameter_sources():
        _check_fits(source, places[source.parameter_name], weights, where)
        filling.setdefault(source.parameter_name, []).append(source)
    # Biggest first: the copy beside the finished ones is then smallest when they are most.
    order = sorted(filling, key=lambda name: -places[name].numel())
    with _MemorySentence(network, place), torch.no_grad():
        for name in order:
            empty = places[name].detach()
            target = empty
            if empty.is_meta:
                target = torch.empty(empty.shape, dtype=empty.dtype, device=place)
            for source in filling[name]:
                stored = weights.read(source.checkpoint_name, empty.dtype)
                check_finite(source.checkpoint_name, stored, where)
                target[source.part].copy_(stored)
                del stored
            if empty.is_meta:
                _replace(network, name, target)
    return network


def save(network: CausalLM, target: Path | str, source: Path | str | None = None) -> Path:
    """Write a Hugging Face folder that transformers opens; returns it.

    `source` is the folder that the tokenizer, chat template and generation config come from. See
    :func:`forethought.checkpoints.save_folder.save_folder` for what is refused.
    """
    from forethought.checkpoints.save_folder import save_folder

    folder = Path(target)
    companions = None if source is None else Path(source)
    if companions is not None and not companions.is_dir():
        raise UserError(f"{companions}: no folder to take the tokenizer from")
    save_folder(folder, network.config, network.checkpoint_tensors(), source=companions)
    return folder


def stored_bytes(
    config: NetworkConfig, dtype: torch.dtype | None = None, *, mtp: bool = False
) -> int:
    """Bytes that the weights of such a network take in memory."""
    return _bytes(skeleton(config, dtype, mtp=mtp))


def gpus() -> int:
    """How many CUDA GPUs torch finds here."""
    return torch.cuda.device_count()


def usable_device(device: torch.device | str, instead: str = "use cpu") -> torch.device:
    """The device, or UserError with one sentence where this machine or torch lacks it, which ends
    in what to do ``instead``."""
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise UserError(f"device {str(device)!r}: not a device; use cpu, cuda or cuda:N") from None
    if wanted.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise UserError(f"device {wanted}: torch finds no CUDA GPU here; {instead}")
        if (wanted.index or 0) >= count:
            raise UserError(f"device {wanted}: this machine has {count} CUDA GPU(s), from cuda:0")
    elif wanted.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"device {wanted}: torch finds no Apple GPU here; {instead}")
    return wanted


def usable_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """`dtype`, or float32 and one line of warning for bfloat16 on a GPU that would emulate it."""
    if dtype != torch.bfloat16 or device.type != "cuda":
        return dtype
    with torch.cuda.device(device):
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return dtype
    warnings.warn(
        f"{torch.cuda.get_device_name(device)} does not compute in bfloat16: float32 is used "
        "instead, which takes twice the memory",
        stacklevel=2,
    )
    return torch.float32


def _network(config: NetworkConfig, mtp: bool) -> CausalLM:
    if isinstance(config, DeepseekConfig):
        from forethought.models.deepseek_v3 import DeepseekV3

        return DeepseekV3(config, mtp=mtp)
    if isinstance(config, DenseConfig):
        from forethought.models.dense import DenseLM

        return DenseLM(config)
    raise TypeError(f"not a network's config: {type(config).__name__}")


def _tensors(network: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and persistent buffers by name: what a checkpoint fills."""
    return iter(network.state_dict(keep_vars=True).items())


def _replace(network: nn.Module, name: str, tensor: torch.Tensor) -> None:
    owner_name, _, leaf = name.rpartition(".")
    owner = network.get_submodule(owner_name)
    old = getattr(owner, leaf)
    if isinstance(old, nn.Parameter):
        owner.register_parameter(leaf, nn.Parameter(tensor, requires_grad=old.requires_grad))
    else:
        owner.register_buffer(leaf, tensor)


def _check_fits(source: Source, place: torch.Tensor, weights: Weights, where: Path | str) -> None:
    name = source.checkpoint_name
    if name not in weights:
        raise ModelError(f"{where} lacks the tensor {name}, which the network needs")
    wanted = tuple(place.detach().to("meta")[source.part].shape)
    found = tuple(weights.shape(name))
    if found != wanted:
        raise ModelError(
            f"{where}: {name} has shape {list(found)}, and the network needs {list(wanted)}"
        )


def _bytes(network: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for _, tensor in _tensors(network))


class _MemorySentence:
    """Turns torch's report of exhausted memory into one sentence."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._gib = _bytes(network) / 2**30
        self._device = device

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        # On the CPU torch raises a bare RuntimeError whose text alone says what it is.
        short = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
            isinstance(error, RuntimeError) and "allocate memory" in str(error)
        )
        if short:
            raise ModelError(
                f"the weights take {self._gib:.1f} GiB, more memory than {self._device} has free"
            ) from None
