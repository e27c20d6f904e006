"""Policy gradients: answers that were rewarded become likelier. Each method says what an advantage is, what a token's
loss is and over what it is averaged; log-probabilities are common to all (logprobs.py).

Not here: where answers come from (train/rl/rollouts.py), what they are worth (train/rl/rewards.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from babyllama.data.streams.batches import IGNORE, Batch
from babyllama.model.transformer import Transformer, expected
from babyllama.recipe import Recipe
from babyllama.train.losses.logprobs import token_logprobs

SMALL = 1e-4  # beside a group's standard deviation
Over = Literal["answers", "tokens", "sums"]


class Terms(NamedTuple):
    """Of every token (B, T): its loss, the ratio π/π_old that it goes by, whether the ratio was cut."""

    loss: Tensor
    ratio: Tensor
    clipped: Tensor


class Method(Recipe):
    """What all methods share.

    Attributes:
        over: of what the loss is the mean: answers (each the mean of its tokens), tokens, or sums (answers, each the
            sum of its tokens).
        constant: answers count as if each had the most tokens that one may have.
    """

    compiles: ClassVar[bool] = False
    over: ClassVar[Over] = "answers"
    constant: ClassVar[bool] = False
    epsilon: float = Field(default=0.2, gt=0, description="how far below 1 the ratio may go before it teaches nothing")
    epsilon_high: float | None = Field(default=None, gt=0, description="the same above 1; default: epsilon")
    beta: float = Field(
        default=0.0, ge=0, description="weight of the KL divergence to the model of the start; 0: no second model"
    )

    @property
    def high(self) -> float:
        """How far above 1 the ratio may go."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    def advantages(self, rewards: Tensor, counted: Tensor) -> Tensor:
        """(P, G) float64 rewards of P groups → by how much each answer is better than its group, in its standard
        deviations (of a sample). Answers that are not `counted`, and groups with fewer than two, get 0."""
        away, count = _away(rewards, counted)
        deviation = (away.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
        return away / (deviation + SMALL)

    def terms(self, logprobs: Tensor, old: Tensor, advantages: Tensor, kept: Tensor) -> Terms:
        """Of tokens (B, T). `advantages` (B, 1); where `kept` is False nothing counts and both log-probabilities
        are 0."""
        return _clipped(logprobs - old, advantages, self.epsilon, self.high)

    def of(self, temperature: float, longest: int, replay: float = 0.0) -> PolicyLoss:
        """The objective. `temperature`: that answers are drawn with. `longest`: tokens that one may have. `replay`: as
        PolicyLoss has it."""
        return PolicyLoss(self, temperature, longest if self.constant else 1, replay)


def _away(rewards: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards less their group's mean (P, G), 0 where not counted or alone; how many of a group are counted (P, 1)."""
    count = counted.sum(1, keepdim=True)
    rewards = rewards.where(counted, 0)
    mean = rewards.sum(1, keepdim=True) / count.clamp(min=1)
    return (rewards - mean).where(counted & (count > 1), 0), count


def _clipped(log_ratio: Tensor, advantages: Tensor, low: float, high: float) -> Terms:
    """−min(ρA, clip(ρ, 1 − low, 1 + high)·A)."""
    ratio = log_ratio.exp()
    plain, cut = ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages
    return Terms(-torch.minimum(plain, cut), ratio.detach(), cut < plain)


class Grpo(Method):
    """GRPO (arXiv 2402.03300): clipped ratio of each token, mean over an answer's tokens, then over answers."""

    kind: Literal["grpo"] = "grpo"


class DrGrpo(Method):
    """Dr. GRPO (arXiv 2503.20783): no division by the group's deviation nor by an answer's own length."""

    kind: Literal["dr_grpo"] = "dr_grpo"
    over: ClassVar[Over] = "sums"
    constant: ClassVar[bool] = True

    def advantages(self, rewards: Tensor, counted: Tensor) -> Tensor:
        """As of Method, not divided."""
        return _away(rewards, counted)[0]


class Dapo(Method):
    """DAPO (arXiv 2503.14476): the ratio may go further up than down, and all tokens count alike.

    Its dynamic sampling is `rollouts.redraws`, its shaping of overlong answers the reward `length`.
    """

    kind: Literal["dapo"] = "dapo"
    over: ClassVar[Over] = "tokens"
    epsilon_high: float | None = Field(default=0.28, gt=0, description="how far above 1 the ratio may go")


class Gspo(Method):
    """GSPO (arXiv 2507.18071): one ratio for an answer, the geometric mean of its tokens'."""

    kind: Literal["gspo"] = "gspo"
    epsilon: float = Field(default=3e-4, gt=0, description="how far below 1 an answer's ratio may go")
    epsilon_high: float | None = Field(default=4e-4, gt=0, description="how far above 1 an answer's ratio may go")

    def terms(self, logprobs: Tensor, old: Tensor, advantages: Tensor, kept: Tensor) -> Terms:
        """As of Method; all tokens of an answer have the same."""
        count = kept.sum(1, keepdim=True).clamp(min=1)
        mean = (logprobs - old).sum(1, keepdim=True) / count
        return _clipped(mean.expand_as(logprobs), advantages, self.epsilon, self.high)


class Cispo(Method):
    """CISPO (arXiv 2506.13585): the ratio is a weight that is cut above and has no gradient; no token is dropped."""

    kind: Literal["cispo"] = "cispo"
    over: ClassVar[Over] = "tokens"
    epsilon_high: float | None = Field(default=4.0, gt=0, description="the weight is at most 1 + epsilon_high")

    def terms(self, logprobs: Tensor, old: Tensor, advantages: Tensor, kept: Tensor) -> Terms:
        """As of Method."""
        ratio = (logprobs - old).detach().exp()
        return Terms(-ratio.clamp(max=1 + self.high) * advantages * logprobs, ratio, ratio > 1 + self.high)


class Rloo(Method):
    """REINFORCE with leave-one-out baseline (arXiv 2402.14740): an answer against the mean of the others, one ratio for
    the whole answer."""

    kind: Literal["rloo"] = "rloo"
    over: ClassVar[Over] = "sums"

    def advantages(self, rewards: Tensor, counted: Tensor) -> Tensor:
        """As of Method: r − mean of the others."""
        away, count = _away(rewards, counted)
        return away * count / (count - 1).clamp(min=1)

    def terms(self, logprobs: Tensor, old: Tensor, advantages: Tensor, kept: Tensor) -> Terms:
        """As of Method; an answer's loss is shared out over its tokens."""
        whole = (logprobs - old).sum(1, keepdim=True).expand_as(logprobs)
        found = _clipped(whole, advantages, self.epsilon, self.high)
        return found._replace(loss=found.loss / kept.sum(1, keepdim=True).clamp(min=1))


class Ppo(Method):
    """PPO (arXiv 1707.06347): an advantage for each token, by a value head that learns beside the model what is to be
    expected from there on, and GAE (arXiv 1506.02438); its loss is clipped as the ratio is."""

    kind: Literal["ppo"] = "ppo"
    over: ClassVar[Over] = "tokens"
    gamma: float = Field(default=1.0, gt=0, le=1, description="how much a token later counts")
    trace: float = Field(default=0.95, ge=0, le=1, description="λ of GAE; 1: the reward itself, less what was expected")
    value_weight: float = Field(default=0.5, ge=0, description="of the value head's loss beside the policy's")
    value_epsilon: float = Field(default=0.2, gt=0, description="how far a value may go from what it was at the draw")

    def advantages(self, rewards: Tensor, counted: Tensor) -> Tensor:
        """The rewards themselves; see `gae` for the tokens'."""
        return rewards.where(counted, 0)

    def value_loss(self, values: Tensor, before: Tensor, returns: Tensor) -> Tensor:
        """½·max((v − R)², (clip(v, v_old ± ε) − R)²) of every token."""
        near = before + (values - before).clamp(-self.value_epsilon, self.value_epsilon)
        return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())


def gae(rewards: Tensor, values: Tensor, kept: Tensor, gamma: float, trace: float) -> tuple[Tensor, Tensor]:
    """What each token did better than was expected, and what came of it: advantages and returns (N, T), 0 where not
    kept.

    Args:
        rewards: (N,) for an answer whole, at its last kept token.
        values: (N, T) what was expected before each token.  kept: (N, T) the tokens that the model wrote.
    """
    advantages = torch.zeros_like(values)
    following, later = torch.zeros_like(rewards), torch.zeros_like(rewards)  # of the next kept token: A, V
    reward = rewards.clone()  # given once
    for t in reversed(range(values.shape[1])):
        here = kept[:, t]
        found = reward + gamma * later - values[:, t] + gamma * trace * following
        advantages[:, t] = found.where(here, 0)
        following, later = found.where(here, following), values[:, t].where(here, later)
        reward = reward.where(~here, 0)
    return advantages, (advantages + values).where(kept, 0)


PolicyMethod = Annotated[Grpo | DrGrpo | Dapo | Gspo | Cispo | Rloo | Ppo, Field(discriminator="kind")]


@dataclass(frozen=True)
class PolicyLoss:
    """An objective. A batch's targets are the tokens of answers, one answer a row, and so are its tokens, or several
    answers and their prompt a row (`answer_states`); its extras:

        advantages  (B,) float32; of PPO (B, T), by token
        values, returns  (B, T) float32, PPO's: what was expected at the draw, and what came
        old         (B, T) float32, log π of each target when the answers were drawn; where it is missing, the policy
                    is that which drew them: the ratio is 1
        reference   (B, T) float32, log π of each target by the reference; only with beta above 0
        answered    (B, A) int64, where the targets are among the batch's B·T places, filled up with a place that has
                    none; where it is missing, the host is asked
        texts, following  (B, L) int64, a stretch of earlier text beside each answer, and what follows each token in
                    it; only with replay above 0

    Metrics, means over an answer's tokens: entropy, ratio, clipped (the share that was cut), with a reference kl, with
    texts text_loss.

    Args:
        unit: what one answer weighs.
        replay: weight of the texts' cross-entropy beside the answers' loss (PPO-ptx, arXiv 2203.02155).
    """

    plain: ClassVar[bool] = False
    recorded: ClassVar[bool] = True  # batches are of few shapes, but of too many to compile for each
    method: Method
    temperature: float = 1.0
    unit: int = 1
    replay: float = 0.0

    @property
    def steady(self) -> bool:
        """As of every objective; of earlier texts nobody says where their targets are."""
        return not self.replay

    def __call__(self, model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        hidden = answer_states(model, batch)  # (B, T, C)
        told, kept = token_logprobs(model, batch, self.temperature, hidden), batch.targets != IGNORE
        old = batch.extras.get("old", told.logprobs.detach())
        advantages = batch.extras["advantages"]
        by_token = advantages if advantages.ndim == 2 else advantages[:, None]
        loss, ratio, clipped = self.method.terms(told.logprobs, old, by_token, kept)
        metrics = {"entropy": told.entropy, "ratio": ratio, "clipped": clipped.float()}
        if isinstance(self.method, Ppo):
            values = expected(model, hidden)
            value = self.method.value_loss(values, batch.extras["values"], batch.extras["returns"])
            loss, metrics["value_loss"] = loss + self.method.value_weight * value, value.detach()
        if self.method.beta:
            kl = k3(told.logprobs, batch.extras["reference"])
            loss, metrics["kl"] = loss + self.method.beta * kl, kl.detach()
        means = {name: self._summed(value, kept, "tokens" if self.method.over == "tokens" else "answers") * self.unit
                 for name, value in metrics.items()}  # fmt: skip
        total = self._summed(loss, kept, self.method.over)
        if self.replay:
            read = Batch(batch.extras["texts"], batch.extras["following"])
            counted = read.targets != IGNORE
            each = -token_logprobs(model, read).logprobs.sum(1) / counted.sum(1).clamp(min=1)
            text_loss = (each * self._weights(kept)).sum()
            means["text_loss"], total = text_loss.detach(), total + self.replay * text_loss
        return total, means

    def _summed(self, values: Tensor, kept: Tensor, over: Over) -> Tensor:
        """Σ over answers, of each the mean over its tokens, or over all tokens."""
        values = values.where(kept, 0)
        return (values.sum(1) / kept.sum(1).clamp(min=1)).sum() if over == "answers" else values.sum()

    def weight(self, batch: Batch) -> float:
        """Its tokens, or its answers."""
        return int(self._weights(batch.targets != IGNORE).sum())

    def _weights(self, kept: Tensor) -> Tensor:
        """Of every row (B,)."""
        return (kept.sum(1) if self.method.over == "tokens" else kept.any(1)) * self.unit


def answer_states(model: Transformer, batch: Batch) -> Tensor:
    """Final hidden states by target, (B, T, C). The answers to a prompt may lie in one row behind it (batching.py):
    then the tokens' rows end with as many targets' rows each."""
    rows, width = batch.tokens.shape
    before = width - batch.targets.numel() // rows
    if before == 0:
        return model.hidden(batch.tokens, batch.positions, batch.segments)
    hidden = model.hidden(batch.tokens, batch.positions, batch.segments, trunk=True)
    return hidden[:, before:].reshape(*batch.targets.shape, -1)


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """An estimate of KL(π ‖ reference) by one drawn token, without bias and never negative (Schulman 2020)."""
    away = reference - logprobs
    return away.exp() - away - 1
