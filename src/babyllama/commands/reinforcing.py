"""What a training that learns from the model's own answers is made of. Not here: its parts (train/rl/)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

from babyllama.commands.train_recipe import TrainRecipe
from babyllama.data.shards.shards import Prepared
from babyllama.data.streams.batches import DataRecipe, Stream
from babyllama.data.streams.prompts import Prompts
from babyllama.errors import InputError
from babyllama.evals.bits import measure
from babyllama.load import load, pick_device
from babyllama.model.transformer import Transformer, attach_value_head
from babyllama.tokenizer.answers import offered
from babyllama.tokenizer.chat import results_after_answer
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.train.losses.policy import Grpo, Method, Ppo
from babyllama.train.rl.groups import Groups, Rollouts
from babyllama.train.rl.heldout import HeldOut, RewardSums
from babyllama.train.rl.judge import Judge, ModelReward
from babyllama.train.rl.record import Record
from babyllama.train.rl.rewards import Reward
from babyllama.train.rl.rollouts import RolloutRows
from babyllama.train.validation import LossSums

LOOKED = 100  # prompts
STRETCH = 128  # tokens of earlier text beside an answer


def rollout_rows(recipe: TrainRecipe, prepared: Prepared, model: Transformer, tokenizer: Tokenizer,
                 context: int) -> RolloutRows:  # fmt: skip
    """The rows of a recipe whose objective is a policy method. `model` as it is now becomes the reference.

    Raises:
        InputError: no prompt fits, a reward lacks something.
    """
    method, rollouts = parts_of(recipe)
    rewards = rewards_of(recipe, tokenizer)
    prompts = prompts_of(recipe, prepared, "train", tokenizer, context)
    reference = copy.deepcopy(model).eval().requires_grad_(False) if method.beta else None
    if isinstance(method, Ppo):
        attach_value_head(model)  # after the reference was taken
    rows = recipe.plan.rows
    groups = Groups(rollouts, rewards, prompts, tokenizer, rollouts.count(rows), recipe.seed, context)
    texts = texts_of(recipe, tokenizer, context)
    return RolloutRows(groups, method, rows, recipe.plan.micro_batch_size, Record(recipe.out), reference, texts)


def texts_of(recipe: TrainRecipe, tokenizer: Tokenizer, context: int) -> Stream | None:
    """Stretches of the earlier texts to read beside answers. Raises InputError: another tokenizer, nothing to read."""
    if recipe.replay is None:
        return None
    earlier = Prepared.open(recipe.replay.path)
    earlier.check_tokenizer(tokenizer.hash)
    choice = DataRecipe(path=recipe.replay.path, weights=recipe.replay.weights, packing="stream",
                        separate_documents=False)  # fmt: skip
    return Stream(earlier, "train", choice, min(STRETCH, context), recipe.seed + 1)


def prompts_of(recipe: TrainRecipe, prepared: Prepared, split: str, tokenizer: Tokenizer, context: int) -> Prompts:
    """With tools a prompt ends before the first call. Raises InputError where the template cannot go on after one."""
    _, rollouts = parts_of(recipe)
    question = None
    if rollouts.tools is not None:
        results_after_answer(tokenizer, [""])
        question = tokenizer.role_ids["user"]
    return Prompts(prepared, split, recipe.data, prompt_room(rollouts, context), recipe.seed, question)


def rewards_of(recipe: TrainRecipe, tokenizer: Tokenizer) -> tuple[Reward, ...]:
    """The recipe's, those of models with their model. Raises InputError where one lacks something."""
    found = []
    for reward in recipe.rewards:
        reward.check()
        if isinstance(reward, ModelReward):
            judge = load(reward.path, pick_device(recipe.device), scores=True)
            if not judge.model.config.reward:
                raise InputError(f"rewards: model: {reward.path} writes answers and gives no score; train a reward "
                                 "model with objective.kind=reward")  # fmt: skip
            if judge.tokenizer.hash != tokenizer.hash:
                raise InputError(f"rewards: model: {reward.path} has another tokenizer; give one with init's")
            found.append(reward.of(judge.model))
        else:
            found.append(reward)
    return tuple(found)


def parts_of(recipe: TrainRecipe) -> tuple[Method, Rollouts]:
    """Of a recipe that has been checked; where a teacher says what is learned, a method that nobody asks."""
    assert recipe.rollouts is not None
    return recipe.objective if isinstance(recipe.objective, Method) else Grpo(), recipe.rollouts


def prompt_room(rollouts: Rollouts, context: int) -> int:
    """Tokens that a prompt may have, so that an answer has its whole room."""
    if rollouts.max_tokens >= context:
        raise InputError(f"rollouts.max_tokens: {rollouts.max_tokens} leave no room for a prompt in {context} tokens; "
                         f"give at most {context - 1}")  # fmt: skip
    return context - rollouts.max_tokens


def reward_validator(recipe: TrainRecipe, prepared: Prepared, tokenizer: Tokenizer, context: int
                     ) -> Callable[[Transformer], dict[str, RewardSums]]:  # fmt: skip
    """Held-out prompts, answered and marked; with `rollouts.general` also bits per byte of held-out text."""
    _, rollouts = parts_of(recipe)
    prompts = prompts_of(recipe, prepared, "val", tokenizer, context)
    held_out = HeldOut(prompts.spread(rollouts.validation_prompts), rewards_of(recipe, tokenizer), tokenizer,
                       rollouts.max_tokens, rollouts.tools, context)  # fmt: skip
    general = None if rollouts.general is None else Prepared.open(rollouts.general)
    if general is not None:
        general.check_tokenizer(tokenizer.hash)

    def validate(model: Transformer) -> dict[str, RewardSums]:
        found = held_out.measure(model)
        if general is not None:
            plan, length = recipe.plan, model.config.trained_context
            sums = measure(model, general, general.corpora, "val", length, plan.micro_batch_size,
                           plan.validation_tokens)  # fmt: skip
            found = replace(found, bits_per_byte=sum((s for _, s in sums), LossSums()).bits_per_byte)
        return {"answers": found}

    return validate


def passed_over(rows: RolloutRows) -> list[str]:
    """What should be known of the prompts before it begins."""
    prompts, count = rows.groups.prompts, rows.groups.count
    lines = [f"{prompts.count:,} prompts, {count} of them and {rows.recipe.group} answers to each in a rollout, "
             f"which is learned from for {rows.steps} step{'s' * (rows.steps > 1)}"]  # fmt: skip
    if prompts.passed_over:
        lines.append(f"{prompts.passed_over:,} chats are left out: their prompt has more than {prompts.room} tokens "
                     f"(the context less rollouts.max_tokens={rows.recipe.max_tokens}), or none")  # fmt: skip
    return [*lines, *_short_judges(rows), *_without_tools(rows)]


def _short_judges(rows: RolloutRows) -> Iterator[str]:
    for reward in rows.groups.rewards:
        if isinstance(reward, Judge) and (positions := reward.model.config.max_position_embeddings) < rows.groups.room:
            yield (f"rewards: the reward model has {positions:,} positions; of longer answers, prompt included, it "
                   "reads the end alone")  # fmt: skip


def _without_tools(rows: RolloutRows) -> Iterator[str]:
    """Where an agent could call nothing."""
    prompts, tokenizer = rows.groups.prompts, rows.groups.tokenizer
    if rows.recipe.tools is None:
        return
    looked = min(prompts.count, LOOKED)
    if not any(offered(tokenizer.decode(p.tokens, skip_special=False)) for p in prompts.taken(0, looked)):
        yield f"rollouts.tools: none of the first {looked:,} prompts lists a tool, so none can be called"
