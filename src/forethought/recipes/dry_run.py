"""What a run would take, before it begins: sizes, memory, tokens, and time on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Final

from forethought.checkpoints.gguf_config import refuse_unexportable
from forethought.checkpoints.network_config import DeepseekConfig, NetworkConfig
from forethought.checkpoints.network_tensors import (
    DTYPE_BYTES,
    GGUF_BLOCKS,
    cache_bytes_per_token,
    checkpoint_tensors,
    count_parameters,
    gguf_bytes,
    gguf_type,
)
from forethought.engines.machine import available_memory
from forethought.errors import ForethoughtError, UserError
from forethought.models.costs import CostModel
from forethought.paths import expand
from forethought.recipes.measure import (
    PROMPT_TOKENS,
    ROWS,
    Seconds,
    measure,
    side_by_side,
    text_tokens,
)
from forethought.recipes.reading import LoadedRecipe
from forethought.recipes.recipe import Recipe, Stage
from forethought.training.config import (
    EvaluationConfig,
    PretrainConfig,
    RejectionConfig,
    RLConfig,
    SFTConfig,
)

_HEAD_NUMBERS: Final = 1 << 26
"""Logits that the head holds at once (`training.logprobs`), and as many probabilities."""
_ROW_KINDS: Final = ("q8_0", "q4_0", "q5_0")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at the worst moment of the run. ``reference`` is the second network of a KL term.
    ``activations`` is an estimate, of the largest micro-batch; ``cache`` what the sampler keeps for
    its rows at full length."""

    weights: int
    gradients: int
    optimizer: int
    reference: int
    activations: int
    cache: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


@dataclass(frozen=True, slots=True)
class StageFacts:
    """``trained`` and ``sampled``: tokens of one optimiser step, at most (every text as long as it
    may be); ``flops``: of its matrix products (`models.costs`). ``seconds``: of a step and of the
    stage with its evaluations; None if not measured."""

    number: int
    kind: str
    steps: int
    trained: int
    sampled: int
    evaluations: int
    flops: float = 0.0
    step_seconds: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class DryRun:
    """The facts. ``not_measured`` says why times are missing, "" where they are there."""

    name: str
    digest: str
    device: str
    dtype: str
    threads: int | None
    parameters: int
    active: int
    mtp: int
    cache_bytes_per_token: int
    memory: Memory
    available: int
    gguf: dict[str, int]
    gguf_problem: str
    odd_rows: tuple[str, ...]
    """Matrices that a quantised GGUF keeps as f16: their rows are no multiple of 32."""
    stages: tuple[StageFacts, ...]
    not_measured: str

    @property
    def seconds(self) -> float | None:
        """Of the whole run, if every text were as long as it may be."""
        found = [stage.seconds for stage in self.stages if stage.seconds is not None]
        return sum(found) if len(found) == len(self.stages) else None

    def as_json(self) -> dict[str, object]:
        """The facts as plain data."""
        facts = asdict(self)
        facts["memory"]["total"] = self.memory.total
        facts["odd_rows"] = list(self.odd_rows)
        facts["stages"] = [asdict(stage) for stage in self.stages]
        return {**facts, "seconds": self.seconds}

    def as_text(self) -> str:
        """The facts as a table for people."""
        return "".join(f"{key:<22}{value}\n" for key, value in self._rows())

    def _rows(self) -> Iterator[tuple[str, str]]:
        yield "recipe", f"{self.name}  ({self.digest[:12]})"
        active = "" if self.active == self.parameters else f", {self.active:,} active per token"
        yield "parameters", f"{self.parameters:,}{active}"
        if self.mtp:
            yield "MTP module, beside", f"{self.mtp:,}"
        yield "cache a token", f"{self.cache_bytes_per_token:,} bytes"
        threads = "" if self.threads is None else f", {self.threads} threads"
        yield "computes", f"{self.device}, {self.dtype}{threads}"
        for key, amount in asdict(self.memory).items():
            if amount:
                yield f"memory, {key}", _size(amount)
        free = f" of {_size(self.available)} free" if self.device == "cpu" else ""
        yield "memory, in all", f"{_size(self.memory.total)}{free}"
        for kind, amount in self.gguf.items():
            yield f"GGUF, {kind}", _size(amount)
        if self.gguf_problem:
            yield "GGUF", self.gguf_problem
        if self.odd_rows:
            more = f" and {len(self.odd_rows) - 1} more" if len(self.odd_rows) > 1 else ""
            yield (
                "GGUF, quantised",
                (f"{self.odd_rows[0]}{more} stay f16: rows of no multiple of 32"),
            )
        for stage in self.stages:
            yield f"{stage.number} {stage.kind}", _stage_text(stage)
        if self.seconds is not None:
            yield "time, about", _duration(self.seconds)
        if self.not_measured:
            yield "time", self.not_measured


def dry_run(loaded: LoadedRecipe) -> DryRun:
    """The facts of a recipe, times from a short measurement with random weights.

    Until the tokenizer is trained its vocabulary counts as full. Raises UserError for a device
    that is not there.
    """
    recipe = loaded.recipe
    config = _network_config(loaded)
    count = count_parameters(config)
    problem = ""
    try:
        refuse_unexportable(config)
    except UserError as error:
        problem = str(error)
    value_bytes = DTYPE_BYTES[recipe.dtype]
    facts = DryRun(
        name=recipe.name,
        digest=loaded.digest,
        device=recipe.device,
        dtype=recipe.dtype,
        threads=recipe.threads,
        parameters=count.total,
        active=count.active,
        mtp=count.mtp,
        cache_bytes_per_token=cache_bytes_per_token(config, value_bytes),
        memory=_memory(recipe, config, value_bytes),
        available=available_memory(),
        gguf={} if problem else {kind: gguf_bytes(config, kind) for kind in GGUF_BLOCKS},
        gguf_problem=problem,
        odd_rows=() if problem else odd_rows(config),
        stages=tuple(
            _with_flops(_stage_facts(n, stage), stage, config)
            for n, stage in enumerate(recipe.stages, 1)
        ),
        not_measured="",
    )
    if recipe.device == "cpu" and facts.memory.total > facts.available:
        return replace(facts, not_measured="not measured: the run needs more memory than is free")
    try:
        return replace(facts, stages=_timed(recipe, config, facts.stages))
    except ForethoughtError as error:
        return replace(facts, not_measured=f"not measured: {error}")


def _network_config(loaded: LoadedRecipe) -> NetworkConfig:
    if loaded.recipe.model is not None:
        return loaded.recipe.model
    from forethought.checkpoints.hf_config import read_config

    assert loaded.recipe.base is not None
    return read_config(loaded.folder / expand(loaded.recipe.base))


def odd_rows(config: NetworkConfig) -> tuple[str, ...]:
    """Names of the matrices whose rows no quantised block of a GGUF fits (32 values)."""
    found = []
    for name, shape in checkpoint_tensors(config).items():
        router = name.endswith("mlp.gate.weight")
        rows = [shape[-1]]
        if isinstance(config, DeepseekConfig) and name.endswith("kv_b_proj.weight"):
            rows = [config.qk_nope_head_dim, config.kv_lora_rank]  # stored as two halves
        kinds = {gguf_type(row, len(shape), router, kind) for row in rows for kind in _ROW_KINDS}
        if "f16" in kinds:
            found.append(name)
    return tuple(found)


def _memory(recipe: Recipe, config: NetworkConfig, value_bytes: int) -> Memory:
    count = count_parameters(config)
    numbers = count.total + (count.mtp if _with_mtp(config) else 0)
    # Two float32 moments a parameter, and a float32 master where the weights are bfloat16, for
    # which the gradients add up in float32 too.
    kept = 8 if recipe.dtype == "float32" else 12
    tokens = recipe.lanes * max(_micro_batch(stage, recipe.lanes) for stage in recipe.stages)
    held = min(tokens * config.vocab_size, _HEAD_NUMBERS)
    return Memory(
        weights=numbers * value_bytes,
        gradients=numbers * 4 * recipe.lanes,
        optimizer=numbers * kept,
        reference=numbers * value_bytes if any(map(_has_reference, recipe.stages)) else 0,
        activations=tokens * activation_values(config) * value_bytes + 2 * held * 4,
        cache=_cache_tokens(recipe) * cache_bytes_per_token(config, value_bytes),
    )


def _has_reference(stage: Stage) -> bool:
    return isinstance(stage, RLConfig) and stage.loss.kl != "none"


def _with_mtp(config: NetworkConfig) -> bool:
    return isinstance(config, DeepseekConfig) and config.num_nextn_predict_layers == 1


def _micro_batch(stage: Stage, lanes: int) -> int:
    """Tokens of the largest micro-batch: a step's share may be fewer, one text may be longer."""
    trained = -(-_stage_facts(0, stage).trained // lanes)
    return max(min(stage.micro_batch_tokens, trained), text_tokens(stage))


def activation_values(config: NetworkConfig) -> int:
    """Numbers that a forward pass keeps for the backward pass, of one token: an estimate.

    Each layer keeps its residual stream, what its norms and products were given, and what the
    nonlinearity of its SwiGLU was made of (three times its width for each expert of a token).
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    if not isinstance(config, DeepseekConfig):
        heads = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        attention = 4 * heads + 3 * keys
        return layers * (6 * hidden + attention + 4 * config.intermediate_size)
    query = config.num_attention_heads * config.qk_head_dim
    value = config.num_attention_heads * config.v_head_dim
    latent = config.kv_lora_rank + (config.q_lora_rank or 0)
    attention = 5 * query + 3 * value + 3 * latent
    dense = min(config.first_k_dense_replace, layers)
    routed = config.num_experts_per_tok * (4 * config.moe_intermediate_size + 2 * hidden)
    shared = config.n_shared_experts * 4 * config.moe_intermediate_size
    scores = 3 * config.n_routed_experts
    return (
        layers * (6 * hidden + attention)
        + dense * 4 * config.intermediate_size
        + (layers - dense) * (routed + shared + scores + 2 * hidden)
    )


def _cache_tokens(recipe: Recipe) -> int:
    """Tokens that the sampler holds at most, in a stage or in an evaluation."""
    held_out = recipe.evaluation
    rows = min(ROWS, held_out.problems * held_out.samples)
    found = [rows * (PROMPT_TOKENS + held_out.max_tokens)]
    for stage in recipe.stages:
        if isinstance(stage, RLConfig | RejectionConfig):
            found.append(side_by_side(stage) * (PROMPT_TOKENS + stage.max_tokens))
    return max(found)


def _stage_facts(number: int, stage: Stage) -> StageFacts:
    steps, sampled = stage.steps, 0
    if isinstance(stage, PretrainConfig):
        trained = stage.batch_tokens
    elif isinstance(stage, SFTConfig):
        trained = stage.batch_conversations * stage.max_length
    elif isinstance(stage, RLConfig):
        samples = stage.problems_per_rollout * stage.group_size
        trained = samples * (PROMPT_TOKENS + stage.max_tokens) // stage.minibatches
        sampled = samples * stage.max_tokens // stage.minibatches
    else:
        steps *= stage.rounds
        trained = stage.batch_conversations * (PROMPT_TOKENS + stage.max_tokens)
        sampled = stage.problems * stage.group_size * stage.max_tokens // stage.steps
    evaluations = max(1, -(-steps // stage.evaluate_every) if stage.evaluate_every else 1)
    return StageFacts(number, stage.kind, steps, trained, sampled, evaluations)


def _with_flops(facts: StageFacts, stage: Stage, config: NetworkConfig) -> StageFacts:
    costs, length = CostModel(config), text_tokens(stage)
    texts = [length] * (facts.trained // length)
    texts += [facts.trained % length] if facts.trained % length else []
    sampling = isinstance(stage, RLConfig | RejectionConfig)
    loss = max(0, facts.trained - PROMPT_TOKENS * len(texts)) if sampling else facts.trained
    mtp = loss if isinstance(stage, PretrainConfig) and _with_mtp(config) else None
    flops = costs.training(texts, loss, mtp).flops
    if _has_reference(stage):
        flops += costs.forward(texts, loss).flops
    if isinstance(stage, RLConfig | RejectionConfig):
        # Each token sees its prompt and what was drawn before it; a group shares its prompt.
        seen = PROMPT_TOKENS + (stage.max_tokens + 1) / 2
        flops += costs.decode(facts.sampled, round(facts.sampled * seen)).flops
        groups = facts.sampled / (stage.max_tokens * stage.group_size)
        flops += groups * costs.prefill([PROMPT_TOKENS], 1).flops
    return replace(facts, flops=flops)


def _timed(
    recipe: Recipe, config: NetworkConfig, stages: tuple[StageFacts, ...]
) -> tuple[StageFacts, ...]:
    import torch

    from forethought.models.loading import DTYPES, build
    from forethought.recipes.workshop import device_of

    device = device_of(recipe)
    before = torch.get_num_threads()
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    elif recipe.lanes > 1:
        torch.set_num_threads(max(1, before // recipe.lanes))
    try:
        dtype = DTYPES[recipe.dtype]
        network = build(config, device=device, dtype=dtype, mtp=_with_mtp(config))
        found = []
        for facts, stage in zip(stages, recipe.stages, strict=True):
            measured = measure(network, stage, recipe.lanes)
            if _has_reference(stage):
                # The reference computes every token too, forward only: a third of the work.
                measured = replace(measured, train=measured.train * 4 / 3)
            found.append(_with_time(facts, measured, recipe.evaluation))
        return tuple(found)
    finally:
        torch.set_num_threads(before)


def _with_time(facts: StageFacts, measured: Seconds, evaluation: EvaluationConfig) -> StageFacts:
    step = facts.trained * measured.train + facts.sampled * measured.sample
    held_out = evaluation.problems * evaluation.samples * evaluation.max_tokens * measured.sample
    return replace(
        facts, step_seconds=step, seconds=facts.steps * step + facts.evaluations * held_out
    )


def _stage_text(stage: StageFacts) -> str:
    text = f"{stage.steps:,} steps of at most {stage.trained:,} tokens"
    if stage.sampled:
        text += f" trained and {stage.sampled:,} sampled"
    text += ", " + _scaled(stage.flops, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))
    if stage.step_seconds is not None and stage.seconds is not None:
        text += f": {stage.step_seconds:.2g} s a step, {_duration(stage.seconds)}"
    return text


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _size(count: int) -> str:
    """Bytes for people, decimal, as disks count."""
    return _scaled(count, ("B", "kB", "MB", "GB", "TB"))


def _scaled(value: float, units: tuple[str, ...]) -> str:
    """Three digits in the unit that fits; each is a thousand times the one before."""
    for unit in units[:-1]:
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} {units[-1]}"
