"""Pretraining: documents in order, whole, packed into steps of about the same number of tokens.

Source: DeepSeek-V3 (arXiv:2412.19437) sections 2.1.2, 2.2 and 4.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from forethought.engines.phases import SILENT, Phases
from forethought.models.causal_lm import CausalLM
from forethought.training.batches import TokenSequence
from forethought.training.config import PretrainConfig
from forethought.training.corpus import CorpusSpec, encoded_documents
from forethought.training.lanes import Lanes
from forethought.training.optimizer import MasterAdamW, learning_rate
from forethought.training.prompting import Prompter
from forethought.training.stage import Facts, SpikeGuard, StepResult, Tensors, TrainingStopped
from forethought.training.supervised import Prepared, Supervised
from forethought.training.tokenizer import TrainedTokenizer


class Pretrainer:
    """Implements :class:`forethought.training.stage.Stage`.

    ``workers``: processes that make and tokenise documents ahead (0: none); what is trained does
    not depend on it. Every token but the first of a document is a target.
    """

    def __init__(
        self,
        network: CausalLM,
        optimizer: MasterAdamW,
        config: PretrainConfig,
        corpus: CorpusSpec,
        tokenizer: TrainedTokenizer,
        prompter: Prompter,
        *,
        workers: int = 0,
        lanes: Lanes | None = None,
        phases: Phases = SILENT,
    ) -> None:
        self.steps, self.number = config.steps, 0
        self._config = config
        self._corpus, self._workers = corpus, workers
        self._tokenizer, self._prompter = tokenizer, prompter
        self._optimizer = optimizer
        self._phases = phases
        self._trainer = Supervised(
            network,
            optimizer,
            vocabulary=tokenizer.size,
            micro_batch_tokens=config.micro_batch_tokens,
            balance=config.balance,
            mtp_weight=config.mtp_weight,
            lanes=lanes,
            phases=phases,
        )
        self._guard = SpikeGuard(config.spike_factor)
        self._next = 0
        """Documents used up by the steps that were taken."""
        self._ahead: tuple[Prepared, int] | None = None
        self._open = ExitStack()
        self._source: Iterator[tuple[int, ...]] | None = None
        self._held: TokenSequence | None = None

    @property
    def resumable(self) -> bool:
        return True

    def step(self) -> StepResult:
        rate = learning_rate(self._config.optimizer, self.number, self.steps)
        prepared, documents = self._ahead or self._prepared()
        self._ahead = None
        more = self._trainer.runs_ahead and self.number + 1 < self.steps
        look_ahead = self._look_ahead if more else None
        try:
            metrics = self._trainer.step(prepared, rate, self._guard.check, look_ahead)
        except TrainingStopped:
            self.close()  # What was read ahead comes again.
            raise
        self.number += 1
        self._next += documents
        tokens = sum(sequence.inputs for sequence in prepared.sequences)
        return StepResult({**metrics, "documents": documents}, tokens)

    def _prepared(self) -> tuple[Prepared, int]:
        """The next step, and its documents."""
        with self._phases.phase("documents"):
            batch = self._batch()
        return self._trainer.prepare(batch), len(batch)

    def _look_ahead(self) -> None:
        self._ahead = self._prepared()

    def _batch(self) -> list[TokenSequence]:
        """The next documents, as many as fit; at least one."""
        batch: list[TokenSequence] = []
        room = self._config.batch_tokens
        while True:
            one = self._document()
            if batch and one.inputs > room:
                self._held = one
                return batch
            self._held = None
            batch.append(one)
            room -= one.inputs

    def _document(self) -> TokenSequence:
        if self._held is not None:
            return self._held
        if self._source is None:
            self._source = self._open.enter_context(
                encoded_documents(
                    self._corpus,
                    self._next,
                    self._tokenizer,
                    self._prompter,
                    workers=self._workers,
                )
            )
        ids = next(self._source)
        # What is cut off takes the end token with it: the document is unfinished, and says so.
        return TokenSequence(ids[: self._config.corpus.max_document_tokens])

    def state(self) -> tuple[Tensors, Facts]:
        facts = {"number": self.number, "next_document": self._next, **self._guard.facts()}
        return self._optimizer.state_tensors(), facts

    def load(self, tensors: Tensors, facts: Facts) -> None:
        number, following = facts["number"], facts["next_document"]
        assert isinstance(number, int)
        assert isinstance(following, int)
        self.close()
        self.number, self._next = number, following
        self._guard.load(facts)
        self._optimizer.load_state_tensors(dict(tensors))

    def close(self) -> None:
        self._open.close()
        self._source, self._held, self._ahead = None, None, None
