"""What the verb train can be told.

Not here: how it is put together (train.py), as what a run may go on (continuing.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from babyllama.commands.samples import Samples
from babyllama.data.streams.batches import DataRecipe
from babyllama.data.streams.replay import Replay
from babyllama.errors import InputError
from babyllama.evals.tasks import SUITES, TaskChoice
from babyllama.hardware import DeviceChoice
from babyllama.model.attention import FullAttention, ShiftedSparse
from babyllama.model.config import ModelChoice
from babyllama.model.laws import ClexRope, RopeConfig
from babyllama.model.lora import Lora
from babyllama.recipe import Changeable, Recipe, Seed
from babyllama.train.averaging import TailAverage
from babyllama.train.engines.engines import Engine, Single
from babyllama.train.losses.distil import Distil
from babyllama.train.losses.kto import Preferring
from babyllama.train.losses.objectives import NextToken
from babyllama.train.losses.policy import Method, PolicyMethod, Ppo
from babyllama.train.losses.preference import Preference
from babyllama.train.losses.reward import RewardModel
from babyllama.train.optimizers.optim import Muon, Optimizer, Schedule, Wsd
from babyllama.train.plan import Plan
from babyllama.train.rl.groups import Rollouts
from babyllama.train.rl.marks import AnyReward
from babyllama.train.sinks import Sink
from babyllama.train.tuning import Adapter, Full, Lisa, OneBit, check_together, usual_optimizer


class NewModel(Recipe):
    """Start from random weights."""

    kind: Literal["new"] = "new"
    model: ModelChoice = Field(
        default=ModelChoice(preset="tiny"), description="its shape: a preset, a depth, or single sizes"
    )
    tokenizer: Path | None = Field(default=None, description="a tokenizer run; default: the prepared data's own")


class FromModel(Recipe):
    """Start from the model of a run or of a Hugging Face LLaMA folder."""

    kind: Literal["from"] = "from"
    path: Path = Field(description="a run, an adapter or a Hugging Face LLaMA folder")
    rope: RopeConfig | None = Field(default=None, description="another RoPE scaling, to train for a longer context")


class TrainRecipe(Recipe):
    """The verb's recipe; every key can be overridden on the command line.

    What is not `Changeable` decides what is learnt, and stays while a run is continued.
    """

    out: Changeable[Path] = Field(description="the run to make or to continue", examples=["out=runs/NAME"])
    data: DataRecipe = Field(description="what is read", examples=["data.path=runs/corpus"])
    replay: Replay | None = Field(
        default=None, description="mix rows of earlier data into the new ones, against forgetting"
    )
    init: Annotated[NewModel | FromModel, Field(discriminator="kind")] = Field(
        default=NewModel(), description="what it starts from: a new model, or one that is there"
    )
    objective: Annotated[NextToken | Distil | Preferring | PolicyMethod, Field(discriminator="kind")] = Field(
        default=NextToken(), description="what is minimised; default with adapter.kind=onebit: distil"
    )
    rewards: tuple[AnyReward, ...] = Field(
        default=(), description="what an answer is worth, for objectives that learn from the model's own answers",
        examples=["'rewards=[{kind: exact}]'"]
    )  # fmt: skip
    rollouts: Rollouts | None = Field(default=None, description="the answers that these objectives draw")
    attend: Annotated[FullAttention | ShiftedSparse, Field(discriminator="kind")] = Field(
        default=FullAttention(),
        description="attention while training; validation, samples and chats use full attention",
    )
    fp8_blocks: bool = Field(
        default=False, description="the blocks' products in float8, going forward, compiled in bf16 on an H100 or newer"
    )
    adapter: Adapter = Field(default=Full(), description="what is trained; with lora and dora an adapter is saved")
    engine: Changeable[Engine] = Field(default=Single(), description="how a step is spread over processes")
    optimizer: Optimizer = Field(
        default=Muon(),
        description="default on a model that is there: muon, lr 0.004, adam_lr 0.001; with lora and dora: adamw, "
        "lr 0.001, no weight decay; to learn from preferences or rewards: adamw, lr 0.00002, with lora and dora 0.0002",
    )
    schedule: Schedule = Field(default=Wsd(), description="how the learning rate goes over the steps")
    average: TailAverage | None = Field(
        default=None, description="save a mean of the last steps' weights; with schedule.final above zero"
    )
    plan: Plan = Field(description="how long, in what portions", examples=["plan.epochs=1"])
    samples: Changeable[Samples] = Field(default=Samples(), description="what the model is asked while it trains")
    abilities: Changeable[Literal["zh-early"] | tuple[TaskChoice, ...]] = Field(
        default=(), description="tests put to the model whenever samples are drawn: zh-early, or a list of tests"
    )
    sinks: Changeable[tuple[Sink, ...]] = Field(
        default=(), description="where the curves go beside metrics.jsonl and TensorBoard, such as [{kind: wandb}]"
    )
    seed: Seed = Field(default=1, description="of new weights, the order of rows and all that is drawn")
    device: Changeable[DeviceChoice] = "auto"
    precision: Literal["auto", "fast", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="fast: bf16 on a CPU too, if it has instructions for it")  # fmt: skip
    compile: Changeable[bool | None] = Field(default=None, description="torch.compile; default: automatic")

    @property
    def tests(self) -> tuple[TaskChoice, ...]:
        """`abilities` as single tests."""
        return SUITES[self.abilities] if isinstance(self.abilities, str) else self.abilities

    @model_validator(mode="after")
    def _choices_fit(self) -> Self:
        if "optimizer" not in self.model_fields_set:
            # A default that hangs on other fields; nobody has the recipe yet.
            compares = isinstance(self.objective, Preference | Method)
            usual = usual_optimizer(self.adapter, isinstance(self.init, NewModel), compares)
            object.__setattr__(self, "optimizer", usual)
        if isinstance(self.adapter, OneBit) and "objective" not in self.model_fields_set:
            object.__setattr__(self, "objective", Distil())
        if isinstance(self.objective, Distil):
            self.objective.check(isinstance(self.init, NewModel), self.compile)
        if isinstance(self.objective, Preference):
            self._preferences_fit(self.objective)
        self._rollouts_fit()
        if self.average is not None and not self.engine.averages:
            raise InputError(f"average: engine.kind={self.engine.kind} holds weights where no mean is kept of them; "
                             "leave average out, or use engine.kind=fsdp")  # fmt: skip
        check_together(self.adapter, self.optimizer, self.engine, isinstance(self.init, NewModel))
        law = self.init.rope if isinstance(self.init, FromModel) else None
        if isinstance(self.adapter, Lora) and isinstance(law, ClexRope):
            # Its weights would stay as they start: an adapter freezes all that it does not train itself.
            raise InputError(
                f"init.rope.kind: clex has weights to learn, which adapter.kind={self.adapter.kind} freezes; "
                "extend the base with adapter.kind=full first, or use another RoPE scaling, such as yarn"
            )
        return self

    def _preferences_fit(self, objective: Preferring) -> None:
        if isinstance(self.init, NewModel):
            raise InputError(f"objective.kind: {objective.kind} needs a model that answers already; give "
                             "init=from init.path=… of a run that was trained on chats")  # fmt: skip
        if self.replay is not None:
            raise InputError(f"replay: its rows hold no answers for objective.kind={objective.kind}; leave it out"
                             + ("; objective.nll=0.2 keeps the better answers likely" if objective.kind == "dpo" else
                                ""))  # fmt: skip
        if isinstance(objective, RewardModel):
            self._scores_fit()
        if (self.data.stretch or 1) > 1:
            raise InputError(f"data.stretch: spreads texts, not the answers of objective.kind={objective.kind}; "
                             "leave it out")  # fmt: skip

    def _scores_fit(self) -> None:
        """A reward model writes nothing, and its head is in no adapter."""
        if not isinstance(self.adapter, Full | Lisa):
            raise InputError(
                f"adapter.kind: {self.adapter.kind} does not hold a reward model's head; leave adapter out"
            )
        for key, given in (("samples.prompts", self.samples.prompts), ("abilities", self.abilities)):
            if given:
                raise InputError(f"{key}: a reward model writes nothing; leave it out")

    def _rollouts_fit(self) -> None:
        """What learns from the model's own answers by rewards has some, and nothing else has."""
        kind = self.objective.kind
        if not isinstance(self.objective, Method):
            taught = isinstance(self.objective, Distil)  # by its own answers, which need no reward
            given = next((name for name in ("rewards", "rollouts")[: 1 if taught else 2] if getattr(self, name)), None)
            if given:
                raise InputError(f"{given}: objective.kind={kind} learns from the data's own answers; leave {given} "
                                 "out, or use objective.kind=grpo")  # fmt: skip
            if self.rollouts is None:
                return
        elif not self.rewards:
            raise InputError(f"rewards: objective.kind={kind} needs to be told what an answer is worth, such as "
                             "rewards=[{kind: exact}]")  # fmt: skip
        if isinstance(self.init, NewModel):
            raise InputError(f"objective.kind: {kind} needs a model that answers already; give init=from "
                             "init.path=… of a run that was trained on chats")  # fmt: skip
        plain = isinstance(self.adapter, Full) and self.engine.kind in ("single", "ddp")
        if isinstance(self.objective, Ppo) and not plain:
            raise InputError("objective.kind: ppo trains a value head beside a whole model; leave adapter out and use "
                             "engine.kind=single or ddp, or use objective.kind=grpo")  # fmt: skip
        taught = not isinstance(self.objective, Method)
        for key, given in (("replay", taught and self.replay), ("compile", self.compile),
                           ("data.stretch", self.data.stretch)):  # fmt: skip
            if given:
                raise InputError(f"{key}: not with objective.kind={kind}, whose rows the model writes; leave it out")
        if self.replay is not None and self.engine.kind != "single":
            raise InputError(f"replay: beside the model's own answers with engine.kind=single alone, not with "
                             f"{self.engine.kind}; leave it out")  # fmt: skip
        if self.rollouts is None:
            object.__setattr__(self, "rollouts", Rollouts())
        assert self.rollouts is not None
        if self.rollouts.group == 1 and isinstance(self.objective, Method):
            raise InputError("rollouts.group: 1 answer has no other to be compared with; give at least 2")
        self.rollouts.count(self.plan.rows)
