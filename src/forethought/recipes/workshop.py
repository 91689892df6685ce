"""What a recipe is made of, made: tokenizer, network, problems, judge, and each stage in turn."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Final

import torch

from forethought.checkpoints.network_config import DeepseekConfig, NetworkConfig
from forethought.engines.phases import SILENT, Phases
from forethought.models.causal_lm import CausalLM
from forethought.models.loading import DTYPES, build, load, usable_device, usable_dtype
from forethought.paths import expand
from forethought.problems.adapters.adapters import Adapters
from forethought.problems.problem import Problem
from forethought.problems.stream import ProblemStream, held_out_problems
from forethought.recipes.model_table import with_vocabulary
from forethought.recipes.reading import LoadedRecipe
from forethought.recipes.recipe import Recipe
from forethought.recipes.recipe import Stage as StageConfig
from forethought.training.config import (
    CorpusConfig,
    PretrainConfig,
    RejectionConfig,
    RewardConfig,
    RLConfig,
    SFTConfig,
)
from forethought.training.corpus import CorpusSpec, documents
from forethought.training.grpo import GRPO
from forethought.training.judging import Judge, Verifier, own_reward
from forethought.training.lanes import Lanes
from forethought.training.muon import optimizer_of
from forethought.training.optimizer import MasterAdamW
from forethought.training.policy import Policy
from forethought.training.pretrain import Pretrainer
from forethought.training.prompting import ZERO_TEMPLATE, Prompter, prompt_text
from forethought.training.ranks import Ranks
from forethought.training.rejection import RejectionSampler
from forethought.training.sft import FineTuner
from forethought.training.stage import Stage
from forethought.training.tokenizer import TrainedTokenizer, read_tokenizer, train_tokenizer

# What is drawn for one purpose never meets what is drawn for another.
_CORPUS, _RL, _HELD_OUT, _WEIGHTS, _SFT, _REJECTION = range(1, 7)
_HELD_OUT_SEED: Final = 20_250_122
"""Held-out problems are the same whatever a run's seed: two seeds are compared on one sheet."""


def tokenizer_of(loaded: LoadedRecipe, saved: Path) -> TrainedTokenizer:
    """The run's tokenizer: the base's, the one ``saved`` holds already, or a new one, which is
    trained on the first documents of the corpus and is the same bytes each time."""
    recipe = loaded.recipe
    if recipe.base is not None:
        return read_tokenizer(loaded.folder / expand(recipe.base))
    if (saved / "tokenizer.json").is_file():
        return read_tokenizer(saved)
    first = next(stage for stage in recipe.stages if isinstance(stage, PretrainConfig))
    with documents(corpus_spec(loaded, first.corpus), 0) as source:
        texts = [
            document.text
            if document.question is None
            else f"{prompt_text(document.question, recipe.prompt)}\n{document.text}"
            for document in islice(source, recipe.tokenizer.documents)
        ]
    return train_tokenizer(texts, recipe.tokenizer.vocab_size)


def corpus_spec(loaded: LoadedRecipe, config: CorpusConfig) -> CorpusSpec:
    """Which documents a pretraining stage of the recipe reads."""
    problems = loaded.recipe.problems
    return CorpusSpec(
        problems.families,
        problems.levels,
        problems.weights,
        problems.language,
        config,
        _seed(loaded.recipe, _CORPUS),
        problems.settings,
        loaded.folder,
    )


def device_of(recipe: Recipe) -> torch.device:
    """Where the recipe computes. Raises UserError where this machine has no such device."""
    return usable_device(
        recipe.device,
        f"run the recipe {recipe.name} on a machine that has one, or set device in a copy of it",
    )


def network_of(loaded: LoadedRecipe, tokenizer: TrainedTokenizer) -> CausalLM:
    """The network with its first weights: the base's, or drawn from the recipe's seed."""
    recipe = loaded.recipe
    device = device_of(recipe)
    dtype = usable_dtype(DTYPES[recipe.dtype], device)
    if recipe.base is not None:
        from forethought.checkpoints.hf_config import read_config

        base = loaded.folder / expand(recipe.base)
        network = load(base, device=device, dtype=dtype, mtp=_modules(read_config(base)))
    else:
        assert recipe.model is not None
        config = with_vocabulary(
            recipe.model,
            tokenizer.size,
            bos=tokenizer.bos_id,
            eos=tokenizer.eos_id,
            dtype=recipe.dtype,
        )
        generator = torch.Generator(device).manual_seed(_seed(recipe, _WEIGHTS))
        network = build(
            config, device=device, dtype=dtype, mtp=_modules(config), generator=generator
        )
    return network.train()


def _modules(config: NetworkConfig) -> bool:
    return isinstance(config, DeepseekConfig) and config.num_nextn_predict_layers == 1


def _seed(recipe: Recipe, purpose: int) -> int:
    return recipe.seed * 64 + purpose


class Workshop:
    """One recipe's parts. ``adapters`` are the caller's, who closes them; ``phases`` hear what
    the stages and the policy compute, which they do together with the other ``ranks``."""

    def __init__(
        self,
        loaded: LoadedRecipe,
        saved_tokenizer: Path,
        adapters: Adapters,
        phases: Phases = SILENT,
        ranks: Ranks | None = None,
    ) -> None:
        self.loaded = loaded
        self.recipe = loaded.recipe
        self.families = loaded.sources(adapters)
        self.tokenizer = tokenizer_of(loaded, saved_tokenizer)
        self.prompter = Prompter(self.tokenizer, self.recipe.prompt)
        self.network = network_of(loaded, self.tokenizer)
        self.policy = Policy(
            self.network,
            self.tokenizer,
            self.prompter,
            sampling_threads=self.recipe.sampling_threads,
            lanes=Lanes(self.network, self.recipe.lanes, ranks),
            phases=phases,
        )
        self._verifiers: dict[str, Verifier] = {one.name: one for one in self.families}

    def tokenizer_files(self) -> dict[str, bytes]:
        """The files of the final folder: the tokenizer's, with the template of the prompt that was
        trained on, so that asking later means asking as in training."""
        files = dict(self.tokenizer.files)
        if self.recipe.prompt == "r1-zero":
            files["chat_template.jinja"] = ZERO_TEMPLATE.encode()
        return files

    def held_out(self) -> list[Problem]:
        problems = self.recipe.problems
        return held_out_problems(
            self.families,
            self.recipe.evaluation.problems,
            _HELD_OUT_SEED,
            levels=problems.levels,
            language=problems.language,
        )

    def judge(self, reward: RewardConfig | None = None) -> Judge:
        """A judge; evaluations (no ``reward``) know nothing of a person's own reward."""
        own = None
        if reward is not None and reward.own is not None:
            own = own_reward(reward.own, self.loaded.folder)
        return Judge(self.tokenizer, self._verifiers, reward or RewardConfig(), own)

    def stream(self, purpose: int) -> ProblemStream:
        problems = self.recipe.problems
        return ProblemStream(
            self.families,
            _seed(self.recipe, purpose),
            levels=problems.levels,
            weights=problems.weights,
            language=problems.language,
        )

    def stage(self, config: StageConfig) -> tuple[Stage, MasterAdamW]:
        """A stage at its beginning, and its optimiser, which its owner closes."""
        optimizer = optimizer_of(self.network.named_parameters(), config.optimizer)
        return self._stage(config, optimizer), optimizer

    def _stage(self, config: StageConfig, optimizer: MasterAdamW) -> Stage:
        if isinstance(config, PretrainConfig):
            return Pretrainer(
                self.network,
                optimizer,
                config,
                corpus_spec(self.loaded, config.corpus),
                self.tokenizer,
                self.prompter,
                workers=config.workers,
                lanes=self.policy.lanes,
                phases=self.policy.phases,
            )
        if isinstance(config, SFTConfig):
            return FineTuner(
                self.network,
                optimizer,
                config,
                self.tokenizer,
                self.loaded.folder / expand(config.data),
                _seed(self.recipe, _SFT),
                lanes=self.policy.lanes,
                phases=self.policy.phases,
            )
        if isinstance(config, RejectionConfig):
            return RejectionSampler(
                self.policy,
                optimizer,
                config,
                self.stream(_REJECTION),
                self.judge(),
                _seed(self.recipe, _REJECTION),
            )
        assert isinstance(config, RLConfig)
        return GRPO(
            self.policy,
            optimizer,
            config,
            self.stream(_RL),
            self.judge(config.reward),
            _seed(self.recipe, _RL),
        )
