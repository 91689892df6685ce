"""A recipe from its first step to its last: stages, evaluations, states, and the model at the end.

Everything that a step computes follows from the recipe and from the state before it. Logs, states
and evaluations are written in one order: metrics of a step, its evaluation, its state; whatever
comes after the newest state is computed again after a kill, to the same bits on a CPU.
"""

from __future__ import annotations

import platform
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import torch

import forethought
from forethought.checkpoints.folder import JSON
from forethought.checkpoints.save_folder import save_folder
from forethought.engines.machine import cores
from forethought.errors import ModelError, UserError
from forethought.evaluation.held_out import evaluate, film_frames
from forethought.problems.adapters.adapters import Adapters
from forethought.recipes.canonical import flat_values
from forethought.recipes.follower import FollowedFolder, Follower
from forethought.recipes.profile import NO_PROFILE, Profile, Profiler
from forethought.recipes.reading import LoadedRecipe, open_adapters
from forethought.recipes.recipe import Recipe, nearest_of
from forethought.recipes.recipe import Stage as StageConfig
from forethought.recipes.source import commit
from forethought.recipes.tensorboard import Board, NoBoard, open_board
from forethought.recipes.workshop import Workshop, device_of
from forethought.training.config import RejectionConfig, RLConfig
from forethought.training.judged_samples import pool_for
from forethought.training.monitor import Monitor, Number, Silent
from forethought.training.ranks import Ranks, joined
from forethought.training.run_files import CHECKPOINTS, TOKENIZER
from forethought.training.run_folder import RunFolder
from forethought.training.stage import METRICS, Facts, Stage, StepResult, TrainingStopped


@dataclass(frozen=True, slots=True)
class RunResult:
    """``finished`` False: it was asked to stop, and can be resumed. ``summary``: held-out figures
    of the newest evaluation."""

    path: Path
    finished: bool
    summary: dict[str, JSON]


def train(
    recipe: LoadedRecipe,
    out: Path,
    *,
    resume: bool = False,
    monitor: Monitor | None = None,
    tensorboard: bool = False,
    profile: bool = False,
    until: str | None = None,
    adapters: Adapters | None = None,
) -> RunResult:
    """Run a recipe in the folder ``out``, or go on with the run that is there.

    ``until``: the label of the stage after which the run rests, to be resumed; None: it ends. A
    run that is in a later stage already is not gone on with (UserError).
    ``profile`` writes where the time goes to a folder in it (`recipes.profile`).
    ``adapters`` find and grade other makers' problems; by default they are opened for the run, with
    a sandbox. Raises UserError for a folder that holds another run, or nothing to resume;
    ModelError where training cannot go on (`TrainingStopped`: after the state was saved).
    """
    if adapters is None:
        with open_adapters() as own:
            return train(
                recipe,
                out,
                resume=resume,
                monitor=monitor,
                tensorboard=tensorboard,
                profile=profile,
                until=until,
                adapters=own,
            )
    monitor = monitor or Silent()
    check_until(recipe.recipe, until)
    device_of(recipe.recipe)  # before the folder is made
    with joined(recipe.recipe.device) as ranks:
        threads = recipe.recipe.threads or max(1, cores()[0] // recipe.recipe.lanes)
        isolated = adapters.isolated if recipe.adapted else None
        identity = run_identity(recipe, threads, isolated=isolated, ranks=ranks.count)
        torch.set_num_threads(threads)
        if not ranks.first:
            ranks.wait()  # What the first writes at the start is there then.
            followed = FollowedFolder(out, recipe.recipe.keep_states)
            follower = Follower(monitor)
            run = _Run(recipe, followed, follower, NoBoard(), adapters, NO_PROFILE, ranks)
            return run.run(until)
        keep = recipe.recipe.keep_states
        if resume:
            folder = RunFolder.resume(out, identity, keep=keep)
        else:
            folder = RunFolder.create(out, identity, recipe.text, keep=keep)
        with folder, open_board(out, tensorboard) as board:
            profiler = Profile(out) if profile else NO_PROFILE
            try:
                run = _Run(recipe, folder, monitor, board, adapters, profiler, ranks)
                ranks.wait()
                return run.run(until)
            finally:
                profiler.finish()


def check_until(recipe: Recipe, until: str | None) -> None:
    """Raises UserError unless ``until`` is None or the label of a stage."""
    labels = _labels(recipe.stages)
    if until is not None and until not in labels:
        raise UserError(
            f"--until {until}: the recipe {recipe.name} has no such stage; "
            f"{nearest_of(until, labels)}"
        )


def run_identity(
    recipe: LoadedRecipe, threads: int, *, isolated: bool | None = None, ranks: int = 1
) -> dict[str, JSON]:
    """What must be the same for a run to go on, and (commit, started) what is only kept.

    ``isolated``: whether other makers' graders run in a sandbox; None where there are none.
    ``ranks``: processes that train together, named where there are several. The
    recipe's values are there one by one, so that a refusal names the one that differs.
    """
    own: dict[str, JSON] = {
        "forethought": forethought.__version__,
        "recipe": recipe.recipe.name,
        "recipe_digest": recipe.digest,
        "seed": recipe.recipe.seed,
        "threads": threads,
        "device": recipe.recipe.device,
        "torch": torch.__version__,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "isolated": isolated,
        "commit": commit(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if ranks > 1:
        own["ranks"] = ranks
    values = flat_values(recipe.recipe).items()
    return own | {f"recipe.{key}": value for key, value in values if key not in {*own, "name"}}


class _Run:
    def __init__(
        self,
        recipe: LoadedRecipe,
        folder: RunFolder,
        monitor: Monitor,
        board: Board,
        adapters: Adapters,
        profile: Profiler,
        ranks: Ranks,
    ) -> None:
        self.recipe = recipe.recipe
        self.ranks = ranks
        self.adapters = adapters
        self.notes: dict[str, JSON] = {}
        """What every line about scores has to say."""
        if recipe.adapted and not adapters.isolated:
            self.notes["isolated"] = False
        self.folder = folder
        self.monitor = monitor
        self.board = board
        saved = folder.restore()
        self.profile = profile
        self.shop = Workshop(recipe, folder.path / TOKENIZER, adapters, profile.phases, ranks)
        self._keep_tokenizer()
        self.problems = self.shop.held_out()
        self.rows = evaluation_rows(self.recipe, self.shop.network.device.type)
        self.verdicts = pool_for(self.shop.policy, self.shop.judge())
        """Of evaluations; RL's rewards are given by one of its own."""
        self.labels = _labels(self.recipe.stages)
        self.summary: dict[str, JSON] = {}
        self.at = 0
        """The stage under way."""
        self._stage_tensors: dict[str, torch.Tensor] = {}
        self._stage_facts: Facts | None = None
        if saved is not None:
            self._load(saved.tensors(), saved.facts)
        profile.begin(self.recipe, self.shop.network, self.shop.tokenizer.size)

    def run(self, until: str | None = None) -> RunResult:
        with self.verdicts:
            self.verdicts.start()
            return self._run(until)

    def _run(self, until: str | None) -> RunResult:
        if until is not None and self.labels.index(until) < self.at:
            raise UserError(
                f"--until {until}: the run in {self.folder.path} is in {self.labels[self.at]} "
                "already; leave it out to go on."
            )
        while self.at < len(self.recipe.stages):
            config = self.recipe.stages[self.at]
            stage, optimizer = self.shop.stage(config)
            if self._stage_facts is not None:
                stage.load(self._stage_tensors, self._stage_facts)
                self._stage_tensors, self._stage_facts = {}, None
            try:
                whole = self._drive(stage, config, self.labels[self.at])
            finally:
                stage.close()
                optimizer.close()
            if not whole:
                return RunResult(self.folder.path, False, self.summary)
            self._keep_checkpoint()
            rests = self.labels[self.at] == until and self.at + 1 < len(self.labels)
            self.at += 1
            if rests:
                return RunResult(self.folder.path, False, self.summary)
        self._publish()
        self.folder.finish()
        return RunResult(self.folder.path, True, self.summary)

    # -- one stage

    def _drive(self, stage: Stage, config: StageConfig, label: str) -> bool:
        """Steps to the end of a stage; False where somebody asked to stop."""
        self.monitor.begin(label, stage.number, stage.steps)
        if stage.number == 0 and isinstance(config, RLConfig):
            self._evaluate(label, 0)
        saved_at = stage.number
        while stage.number < stage.steps:
            started = time.perf_counter()
            try:
                number, whole = stage.number, stage.resumable
                with self.profile.step(label, number, stage.steps, whole=whole):
                    result = stage.step()
            except TrainingStopped as stop:
                if stage.number > saved_at or not self.folder.states.numbers():
                    self._save(stage, label)
                raise type(stop)(
                    f"{label} step {stage.number + 1}: {stop} The state before it is in "
                    f"{self.folder.path}."
                ) from None
            self._tell(label, stage.number, result, time.perf_counter() - started)
            last = stage.number == stage.steps
            if last or (config.evaluate_every and stage.number % config.evaluate_every == 0):
                self._evaluate(label, stage.number)
            due = last or stage.number - saved_at >= config.save_every
            ill = self._grader_failure()
            stopping, failing = self.ranks.any(self.monitor.stopping(), bool(ill))
            if failing and not ill:
                ill = "graders of another process of this run failed; what it said tells why."
            if stage.resumable and (due or stopping or ill):
                self._save(stage, label)
                saved_at = stage.number
                if ill:
                    raise ModelError(f"{label} step {stage.number}: {ill}")
                if stopping and not (last and self.at + 1 == len(self.recipe.stages)):
                    return False
        return True

    def _grader_failure(self) -> str:
        """Why scores are not to be trusted any more; "" while they are."""
        try:
            self.adapters.check_health()
        except ModelError as error:
            return str(error)
        return ""

    def _tell(self, label: str, step: int, result: StepResult, seconds: float) -> None:
        self._append(label, step, result.metrics)
        self.folder.append_timing(
            {
                "stage": label,
                "step": step,
                "seconds": seconds,
                "tokens_per_second": result.tokens / seconds if seconds else 0.0,
                **{f"seconds/{name}": value for name, value in result.phases.items()},
            }
        )
        self.monitor.step(
            label,
            step,
            result.metrics,
            seconds=seconds,
            tokens=result.tokens,
            phases=result.phases,
        )
        if result.thought is not None:
            self.monitor.thought(label, step, *result.thought)

    def _evaluate(self, label: str, step: int) -> None:
        started = time.perf_counter()
        config = self.recipe.evaluation
        with self.profile.evaluation(label):
            found = evaluate(self.shop.policy, self.verdicts, self.problems, config, rows=self.rows)
        frames = film_frames(found, self.shop.policy, self.problems, config.film, label, step)
        seconds = time.perf_counter() - started
        self._append(label, step, found.metrics)
        for frame in frames:
            self.folder.append_film(asdict(frame) | self.notes)
        self.folder.append_timing(
            {
                "stage": label,
                "step": step,
                "seconds/evaluation": seconds,
                "tokens_per_second": found.tokens / seconds,
            }
        )
        self.summary = {"stage": label, "step": step, **found.metrics}
        self.monitor.evaluation(label, step, found.metrics, frames, seconds=seconds)

    def _append(self, label: str, step: int, metrics: Mapping[str, Number]) -> None:
        """A line of metrics.jsonl: the keys that every line has, then the stage's own."""
        line: dict[str, JSON] = {"stage": label, "step": step}
        line |= {key: metrics.get(key) for key in METRICS}
        line |= {key: value for key, value in metrics.items() if key not in line}
        line |= self.notes
        self.folder.append_metrics(line)
        self.board.write(label, self._global_step(step), metrics)

    # -- states and folders

    def _global_step(self, step: int) -> int:
        return sum(stage.steps for stage in self.recipe.stages[: self.at]) + step

    def _save(self, stage: Stage, label: str) -> None:
        started = time.perf_counter()
        own, facts = stage.state()
        tensors = {f"network.{name}": t for name, t in self.shop.network.state_dict().items()}
        tensors |= {f"stage.{name}": tensor for name, tensor in own.items()}
        self.folder.save(
            self._global_step(stage.number) + self.at,
            tensors,
            {"at": self.at, "stage": dict(facts), "summary": self.summary},
        )
        self.monitor.saved(label, stage.number, time.perf_counter() - started)

    def _load(self, tensors: Mapping[str, torch.Tensor], facts: Facts) -> None:
        at, own, summary = facts["at"], facts["stage"], facts["summary"]
        assert isinstance(at, int)
        assert isinstance(own, dict)
        assert isinstance(summary, dict)
        self.at, self.summary, self._stage_facts = at, summary, own
        network = {
            name.removeprefix("network."): tensor
            for name, tensor in tensors.items()
            if name.startswith("network.")
        }
        self.shop.network.load_state_dict(network)
        self._stage_tensors = {
            name.removeprefix("stage."): tensor
            for name, tensor in tensors.items()
            if name.startswith("stage.")
        }

    def _keep_tokenizer(self) -> None:
        target = self.folder.path / TOKENIZER
        if target.exists():
            return
        beside = target.with_name(f".{TOKENIZER}.unfinished")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        for name, content in self.shop.tokenizer_files().items():
            (beside / name).write_bytes(content)
        beside.rename(target)

    def _keep_checkpoint(self) -> None:
        """The model after a stage that is not the last, as a folder of its own."""
        if self.at + 1 == len(self.recipe.stages) or not self.ranks.first:
            return
        target = self.folder.path / CHECKPOINTS / f"{self.at + 1}-{self.labels[self.at]}"
        if not target.exists():
            self._write_model(target)

    def _publish(self) -> None:
        """The final model: the run's own folder becomes one that transformers and `ask` open.

        Files move in one by one, config.json last: without it nothing takes the folder for one.
        """
        if not self.ranks.first:
            return
        beside = self.folder.path / ".model.unfinished"
        shutil.rmtree(beside, ignore_errors=True)
        self._write_model(beside)
        names = sorted(path.name for path in beside.iterdir())
        for name in sorted(names, key=lambda name: name == "config.json"):
            (beside / name).replace(self.folder.path / name)
        beside.rmdir()

    def _write_model(self, target: Path) -> None:
        network = self.shop.network
        save_folder(
            target,
            network.config,
            network.checkpoint_tensors(),
            tokenizer_files=self.shop.tokenizer_files(),
        )


_ROWS: Final = 256
_CUDA_ROWS: Final = 2048


def evaluation_rows(recipe: Recipe, device: str) -> int:
    """Held-out samples computed side by side. A GPU is full only with many: as many as the stages
    that sample take there (what fits them fits), or 2048 where none does."""
    if device != "cuda":
        return _ROWS
    sampling = [one.rows for one in recipe.stages if isinstance(one, RLConfig | RejectionConfig)]
    return max([_ROWS, *sampling]) if sampling else _CUDA_ROWS


def _labels(stages: tuple[StageConfig, ...]) -> list[str]:
    """A stage is called by its kind; the second of a kind is "rl-2"."""
    labels: list[str] = []
    for stage in stages:
        before = sum(label.partition("-")[0] == stage.kind for label in labels)
        labels.append(stage.kind if not before else f"{stage.kind}-{before + 1}")
    return labels
