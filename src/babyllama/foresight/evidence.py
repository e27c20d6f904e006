"""What the doctor's checks look at: plain values, each gathered once.

Gathered in rehearsal.py (the first steps once more), corpus.py (the prepared data) and kept.py (weights on disk).
Not here: what any of it means (doctor.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from babyllama.train.optimizers.optim import Optimizer, Schedule
from babyllama.train.plan import Plan

Line = dict[str, Any]  # one line of metrics.jsonl


# ── the first steps once more ──────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Tally:
    """Counts over raw batches, as the stream hands them out.

    A target is judged where the two inputs after it lie in its document. A document counts that ends inside its row:
    in a row with segments where they change, in a plain stream where an end token comes next.
    """

    places: int = 0
    targets: int = 0  # that the loss counts
    judged: int = 0
    following: int = 0  # of those judged: equal to the next input, as they must
    same: int = 0  # … to the input at their own place
    beyond: int = 0  # … to the input two places on
    documents: int = 0
    untaught: int = 0  # documents without any target
    ended: int = 0  # documents whose last target is the end token
    rows: int = 0
    blank: int = 0  # rows without any target

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Reference:
    """The first step by plain autograd: mean loss over its targets, the gradient's norm before clipping.

    `update` is the largest change of a weight that one step of Adam can make, in learning rates: close to 1.
    """

    loss: float
    norm: float
    update: float


@dataclass(frozen=True)
class Gain:
    """The loss of the first step's own rows, in nats a token, before and after `steps` steps.

    `path`: the steps' learning-rate multipliers added up, so that a warm-up counts for what it is.
    """

    before: float
    after: float
    steps: int
    path: float

    @property
    def nats(self) -> float:
        return self.before - self.after


@dataclass(frozen=True)
class Rehearsal:
    """A training's first steps, taken in a temporary folder. `moved` is None when Adam trains nothing."""

    lines: tuple[Line, ...] = ()
    tally: Tally = field(default_factory=Tally)
    reference: Reference | None = None  # None: not one target in the first step
    moved: float | None = None  # largest change of a weight in the first step taken, in the recipe's learning rates
    ratios: tuple[float, ...] = ()  # of each step: the median matrix's change, as a share of the matrix
    diverged: str = ""  # what the trainer said when it gave up
    gain: Gain | None = None
    trial: Gain | None = None  # the same rows at the optimiser's default rates; taken when `gain` is small
    growth: float = 1.0  # the median matrix's norm at the end, as a share of that at the start
    still: tuple[str, ...] = ()  # parameters that ought to learn and did not change by one bit


# ── the prepared data ──────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Chats:
    """A sample of chats, their masks held against the answers that the chat template's special tokens enclose."""

    template: str
    count: int
    answers: int
    unended: int  # answers without the end token, or whose end token does not count
    learned: int  # tokens that count
    foreign: int  # of them, those that stand in no answer
    too_long: int  # chats with more tokens than a row


@dataclass(frozen=True)
class Corpus:
    """What a corpus's shards hold, from a sample of its tokens. Entropies in nats a token."""

    where: str
    tokens: int  # looked at
    entropy: float  # of single tokens
    gain: float  # how much better a token can be told from the one before it than in the same tokens shuffled
    documents: int = 0  # looked at for repetitions
    distinct: int = 0
    repeated: float = 0.0  # share of the tokens in documents that came before
    respelt: float | None = None  # share of tokens that come back when a sample is decoded and encoded again
    sample: str = ""  # of the decoded text
    held_out: int = 0  # validation documents looked at
    leaked: int = 0  # of them, those that stand in the training split word for word
    distance: Distance | None = None
    chats: Chats | None = None
    made: bool = False  # by this package: a small closed world, which says the same things again


@dataclass(frozen=True)
class Distance:
    """Nats a token under the token frequencies of one half of the training split."""

    validation: float
    training: float  # parts of the other half, as large as the validation split: their mean
    spread: float  # and standard deviation


# ── weights on disk ────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class SavedWeights:
    """One folder's matrices: how many entries are numbers of a half precision, and what can be no training's work."""

    where: str
    exact: float  # share, 0 … 1
    precision: str  # bf16 or fp16, whichever has more
    broken: tuple[str, ...] = ()  # names of tensors with an entry that is no finite number
    zero: tuple[str, ...] = ()  # names of matrices that are all zeros
    dead: int = 0  # ids that the data use whose embedding row is all zeros
    changed: str = ""  # files that do not match their checksums


@dataclass(frozen=True)
class Kept:
    """A saved model's loss once more, and what the run recorded for it."""

    where: str
    what: str  # which loss
    recorded: float
    measured: float


@dataclass(frozen=True)
class Apart:
    """A finished run's model/ beside the checkpoint of its last step."""

    model: str
    state: str
    share: float  # of the entries that differ by more than rounding
    worst: str  # the tensor that differs most


@dataclass(frozen=True)
class Turned:
    """A model folder whose config.json names another RoPE than its run was trained with."""

    where: str
    trained: str
    found: str


# ── all of it ──────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Choices:
    """What the recipe says."""

    optimizer: Optimizer
    schedule: Schedule
    plan: Plan
    steps: int
    new: bool = True  # random weights, not another model's
    rope: tuple[float, float] | None = None  # loss under the init's own RoPE and under the recipe's, where it differs


@dataclass(frozen=True)
class Evidence:
    """All that the checks may look at; what is empty or None was not to be had."""

    accumulate: int
    scaled: bool  # float16 with a loss scale
    eos: int | None = None
    documents_per_token: float = 0.0  # of the prepared data
    recorded: tuple[Line, ...] = ()
    rehearsal: Rehearsal | None = None
    states: tuple[SavedWeights, ...] = ()
    restarted: SavedWeights | None = None  # the weights that a run began with whose parent had read the same data
    choices: Choices | None = None
    corpora: tuple[Corpus, ...] = ()
    models: tuple[SavedWeights, ...] = ()  # the run's model/, and the one that it starts from
    kept: tuple[Kept, ...] = ()
    apart: Apart | None = None
    turned: tuple[Turned, ...] = ()
    templates: tuple[str, ...] = ()  # of the chats that the init learned, and of these data's
