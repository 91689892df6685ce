"""Evaluations: verdicts of side processes are the same figures, and a GPU gets many rows."""

from __future__ import annotations

import pytest

from forethought.evaluation.held_out import Evaluation, evaluate
from forethought.problems.stream import held_out_problems
from forethought.recipes.recipe import Recipe
from forethought.recipes.run import evaluation_rows
from forethought.training.batches import TokenSequence
from forethought.training.config import (
    BalanceConfig,
    EvaluationConfig,
    OptimizerConfig,
    RejectionConfig,
    RewardConfig,
)
from forethought.training.judge_pool import JudgePool
from forethought.training.judging import Judge
from forethought.training.policy import Policy
from forethought.training.prompting import Prompter, reply_text
from forethought.training.supervised import Supervised
from micro_run import write_recipe
from tiny_training import ShownDigit, optimizer_of, tiny_tokenizer, tiny_v3

TOKENIZER = tiny_tokenizer()
PROMPTER = Prompter(TOKENIZER, "chat")
PROBLEMS = held_out_problems([ShownDigit()], 40, 7)
CONFIG = EvaluationConfig(samples=4, temperature=1.0, top_p=1.0, max_tokens=20)


def policy() -> Policy:
    """One that has learnt the form and guesses, with and without it."""
    net = tiny_v3(TOKENIZER.padded_size)
    prompt = PROMPTER.ids("1")
    texts = [*(reply_text("x", digit) for digit in "012"), *["<answer>1</answer>"] * 2]
    data = []
    for text in texts:
        body = TOKENIZER.tokenizer.encode(text, parse_special=True)
        data.append(TokenSequence((*prompt, *body, TOKENIZER.eos_id), len(prompt)))
    trainer = Supervised(
        net,
        optimizer_of(net),
        vocabulary=TOKENIZER.size,
        micro_batch_tokens=4096,
        balance=BalanceConfig(loss_weight=0.0),
    )
    for _ in range(40):
        trainer.step(data, 0.02)
    return Policy(net, TOKENIZER, PROMPTER)


def test_pooled_verdicts_give_the_same_figures():
    one = policy()
    judge = Judge(TOKENIZER, {"shown_digit": ShownDigit()}, RewardConfig())
    found: list[Evaluation] = []
    for workers in (0, 2):
        with JudgePool(judge, workers) as pool:
            found.append(evaluate(one, pool, PROBLEMS, CONFIG, rows=64))
    here, beside = found
    assert beside.metrics == here.metrics
    assert beside.correct == here.correct
    assert beside.judged == here.judged
    # Each verdict is that of its own sample.
    for problem, group, verdicts in zip(PROBLEMS, here.samples, here.judged, strict=True):
        assert list(verdicts) == [judge.judge(problem, sample.ids) for sample in group]
    pass_at_1, form = here.metrics["pass_at_1"], here.metrics["reward_format"]
    assert pass_at_1 is not None
    assert form is not None
    assert 0 < pass_at_1 < 1
    assert 0 < form < 1
    assert here.tokens == sum(len(sample.ids) for group in here.samples for sample in group)


@pytest.mark.parametrize(
    ("rows", "kept", "expected"),
    [(128, None, 256), (4096, None, 4096), (None, 1024, 1024), (None, None, 2048), (512, 640, 640)],
)
def test_rows_of_an_evaluation_follow_the_device_and_the_stages(tmp_path, rows, kept, expected):
    recipe: Recipe = write_recipe(tmp_path).recipe
    pretrain, rl = recipe.stages
    stages = [pretrain]
    if rows is not None:
        stages.append(rl.model_copy(update={"rows": rows}))
    if kept is not None:
        stages.append(
            RejectionConfig(
                steps=1,
                problems=1,
                batch_conversations=1,
                max_tokens=8,
                rows=kept,
                optimizer=OptimizerConfig(learning_rate=1e-3),
            )
        )
    changed = recipe.model_copy(update={"stages": tuple(stages)})
    assert evaluation_rows(changed, "cuda") == expected
    assert evaluation_rows(changed, "cpu") == 256
