"""A request gives the same tokens alone and in any company.

Whatever arrives when, shares prefixes, is dropped in between, in whatever chunks prompts are read and however few rows
there are: every answer equals the one that a fresh engine gives alone, and greedy ones equal transformers'.
"""

from __future__ import annotations

import copy
import itertools
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from babyllama.errors import InputError
from babyllama.infer import prompts
from babyllama.infer.engine import Engine, default_step
from babyllama.infer.guess import Guess, Pace
from babyllama.infer.request import Event, Request
from babyllama.infer.rows import Sampled
from babyllama.infer.sampling import Sampling
from babyllama.infer.speculate import Draft, NGrams
from babyllama.model.config import PRESETS, ModelChoice, extended
from babyllama.model.laws import ClexRope, DynamicNtkRope
from babyllama.model.lora import Lora, attach, enabled, switch
from babyllama.model.transformer import make_rope
from babyllama.model.wrappers import LoraLinear
from conftest import sharp_model, tiny_config, transformers_twin

ROOTS = ([5, 9, 2, 11, 3, 3, 8, 60, 21, 4, 4, 9, 17, 2, 30, 31], [7, 7, 7], [1])
SAMPLINGS = (
    Sampling(temperature=0.0),
    Sampling(temperature=0.0),
    Sampling(temperature=0.9),
    Sampling(temperature=1.3, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.2),
    Sampling(temperature=0.0, presence_penalty=1.5, frequency_penalty=0.7, logit_bias={3: 4.0, 8: -100.0}),
)
MODELS = ("mha", "gqa", "clex", "dynamic_ntk", "sinks", "adapters", "ngrams", "draft", "several",
          "several_clex")  # fmt: skip


@cache
def model_of(kind: str):
    model = sharp_model(tiny_config(kv_heads=4 if kind == "mha" else 2))
    if kind in ("clex", "dynamic_ntk", "several_clex"):  # a trained context of 16 ends inside prompts and answers
        law = ClexRope(max_t=4) if "clex" in kind else DynamicNtkRope(factor=4.0)
        model = sharp_model(tiny_config().model_copy(update={"max_position_embeddings": 16}))
        model.config = extended(model.config, law)
        model.rope = make_rope(model.config).requires_grad_(False)
        for parameter in model.rope.parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    if kind == "adapters":
        for seed, name in enumerate(("one", "two")):
            attach(model, Lora(rank=4, targets=("q_proj", "down_proj")), seed, name)
        for i, module in enumerate(m for m in model.modules() if isinstance(m, LoraLinear)):
            module.lora_B.data.normal_(generator=torch.Generator().manual_seed(i)).mul_(0.5)
        switch(model.requires_grad_(False).eval(), False)
    return model


def make_engine(kind: str, slots: int = 256, guessing: bool = True) -> Engine:
    model = model_of(kind)
    if kind in ("ngrams", "draft") and guessing:
        other = copy.deepcopy(model)  # near enough that many guesses are right and many wrong
        other.lm_head.weight.data[::7] *= 1.1
        return Engine(model, 67, slots=slots, propose=(lambda _: NGrams()) if kind == "ngrams" else Draft.of(other, 67))
    if kind == "sinks":
        model = sharp_model(tiny_config().model_copy(update={"max_position_embeddings": 24}))
    make_step = Several if kind.startswith("several") else None
    return Engine(model, 67, sinks=4 if kind == "sinks" else 0, slots=slots, make_step=make_step)


class Several:
    """A step that goes on by up to five tokens before anybody sees them, as a GPU's does."""

    most = 5

    def __init__(self, model, rows, cache):
        self.single = default_step(model, rows, cache)

    def __call__(self, which, end, uses, limit):
        made = [self.single(which, end, uses, 1) for _ in range(limit)]
        parts = (
            None if one is None else torch.cat([getattr(s, name) for s in made]) for name, one in vars(made[0]).items()
        )
        return Sampled(*parts)


@cache
def alone(kind: str, prompt: tuple[int, ...], sampling: int, seed: int, count: int, adapter: str | None) -> list[int]:
    request = Request(prompt, SAMPLINGS[sampling], count, {0, 13}, seed, adapter=adapter)
    return [token for event in make_engine(kind, guessing=False).events(request) for token in event.tokens]


@dataclass(frozen=True)
class Plan:
    """A request, when it comes and after how many of its tokens it is dropped."""

    root: int
    cut: int
    more: tuple[int, ...]
    sampling: int
    seed: int
    count: int
    arrival: int
    dropped: int | None
    adapter: str | None

    @property
    def prompt(self) -> tuple[int, ...]:
        return (*ROOTS[self.root][: max(1, self.cut)], *self.more)


plans = st.lists(
    st.builds(
        Plan, root=st.integers(0, 2), cut=st.integers(1, 16), more=st.lists(st.integers(0, 66), max_size=6).map(tuple),
        sampling=st.integers(0, len(SAMPLINGS) - 1), seed=st.integers(0, 3), count=st.integers(1, 20),
        arrival=st.integers(0, 12), dropped=st.none() | st.integers(0, 8),
        adapter=st.sampled_from([None, "one", "two"]),
    ), min_size=1, max_size=7,
)  # fmt: skip


def play(engine: Engine, planned: list[Plan]) -> tuple[dict[int, list[int]], dict[int, str]]:
    """Number of the plan → tokens, and how it ended."""
    ids: dict[int, int] = {}
    tokens: dict[int, list[int]] = {i: [] for i in range(len(planned))}
    ends: dict[int, str] = {}
    gone: set[int] = set()
    for now in range(500):
        for i, plan in enumerate(planned):
            if plan.arrival == now:
                request = Request(plan.prompt, SAMPLINGS[plan.sampling], plan.count, {0, 13}, plan.seed,
                                  adapter=plan.adapter)  # fmt: skip
                ids[engine.add(request)] = i
        told = engine.step()
        ended = {event.id for event in told if event.finish is not None}
        for event in told:
            i = ids[event.id]
            assert i not in ends
            tokens[i] += event.tokens
            if event.finish is not None:
                ends[i] = event.finish
            elif planned[i].dropped is not None and len(tokens[i]) > planned[i].dropped and i not in gone:
                gone.add(i)  # a step that made several tokens tells the others still
                assert engine.remove(event.id) == (event.id not in ended) and not engine.remove(event.id)
        if len(ends) == len(planned):
            return tokens, ends
    raise AssertionError(f"not ended after 500 steps: {ends}")


@pytest.mark.parametrize("kind", MODELS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    planned=plans,
    slots=st.sampled_from([1, 2, 3, 256]),
    least=st.sampled_from([1, 3, 64]),
    ahead=st.sampled_from([1, 2, 1000]),
)
def test_alone_and_in_company(kind, planned, slots, least, ahead):
    if kind != "adapters":
        planned = [replace(plan, adapter=None) for plan in planned]
    engine = make_engine(kind, slots)
    engine.ahead = ahead
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompts, "LEAST", least)
        patch.setattr(prompts, "BESIDE", {"cpu": 2 * least})
        patch.setattr(prompts, "ALONE", 4 * least)
        tokens, ends = play(engine, planned)
    for i, plan in enumerate(planned):
        expected = alone(kind, plan.prompt, plan.sampling, plan.seed, plan.count, plan.adapter)
        if ends[i] == "cancelled":
            assert tokens[i] == expected[: len(tokens[i])]
        else:
            assert tokens[i] == expected
            assert ends[i] == ("stop" if expected[-1] in (0, 13) else "length")
    assert not engine.busy


@pytest.mark.parametrize("kind", ["mha", "gqa"])
@settings(max_examples=6, deadline=None, derandomize=True)
@given(planned=plans)
def test_greedy_is_transformers(kind, planned):
    planned = [replace(plan, sampling=0, adapter=None, dropped=None) for plan in planned]
    said_as_transformers(make_engine(kind, 3), planned, twin_of(kind))


@pytest.mark.parametrize(
    "preset", ["tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in PRESETS if name != "tiny")]
)
def test_greedy_of_every_preset_is_transformers(preset, monkeypatch):
    """Prompts that share beginnings come one after the other, are read in pieces, and some are dropped."""
    monkeypatch.setattr(prompts, "LEAST", 4)
    monkeypatch.setattr(prompts, "BESIDE", {"cpu": 8})
    model = sharp_model(ModelChoice(preset=preset).build(331 if preset == "tiny" else 64793))
    planned = [Plan(i % 3, 5 * i, (i, 9), 0, 0, 10, i // 2, 3 if i % 4 == 3 else None, None) for i in range(8)]
    ends = said_as_transformers(Engine(model, model.config.vocab_size, slots=3), planned, transformers_twin(model))
    assert "cancelled" in ends.values()


def said_as_transformers(engine: Engine, planned: list[Plan], twin: LlamaForCausalLM) -> dict[int, str]:
    """How each ended."""
    tokens, ends = play(engine, planned)
    for i, plan in enumerate(planned):
        said = twin.generate(torch.tensor([plan.prompt]), max_new_tokens=plan.count, do_sample=False,
                             eos_token_id=[0, 13], pad_token_id=0)[0, len(plan.prompt) :].tolist()  # fmt: skip
        assert tokens[i] == (said[: len(tokens[i])] if ends[i] == "cancelled" else said)
    return ends


@cache
def twin_of(kind: str) -> LlamaForCausalLM:
    return transformers_twin(model_of(kind))


def test_an_adapter_by_name_is_the_model_with_only_it():
    model = model_of("adapters")
    said = {}
    for name in (None, "one", "two"):
        said[name] = alone("adapters", (5, 9, 2), 0, 0, 20, name)
        with enabled(model, True, name) if name else enabled(model, False):
            assert Engine(model, 67).generate([[5, 9, 2]], SAMPLINGS[0], 20, {0, 13}) == [said[name]]
    assert len(set(map(tuple, said.values()))) == 3
    with pytest.raises(InputError, match="adapter 'three' is not attached to this model; there are: one, two"):
        make_engine("adapters").add(Request([1], adapter="three"))
    with pytest.raises(InputError, match="there are: none"):
        make_engine("gqa").add(Request([1], adapter="three"))


def fed_tokens(engine: Engine, patch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what each forward pass is given."""
    shapes: list[tuple[int, ...]] = []
    hidden = engine.model.hidden

    def counting(tokens, *args, **kwargs):
        shapes.append(tuple(tokens.shape))
        return hidden(tokens, *args, **kwargs)

    patch.setattr(engine.model, "hidden", counting)
    return shapes


def test_several_conversations_are_kept(monkeypatch):
    engine = make_engine("gqa")
    first = [list(engine.stream(list(root), SAMPLINGS[0], 5)) for root in ROOTS]
    shapes = fed_tokens(engine, monkeypatch)
    for root, said in zip(ROOTS, first, strict=True):
        list(engine.stream([*root, *said, 40, 41], SAMPLINGS[0], 1))
    assert shapes == [(1, 3)] * 3
    shapes.clear()  # while one answer goes on, another begins with the same text
    running = engine.stream([*ROOTS[0], 50, 51], SAMPLINGS[0], 9)
    next(running)
    list(engine.stream([*ROOTS[0], 50, 51, 52], SAMPLINGS[0], 1))
    assert (1, 1) in shapes and shapes[0] == (1, 2) and max(shape[1] for shape in shapes) == 2


@pytest.mark.parametrize("kind", ["clex", "dynamic_ntk"])
def test_what_a_longer_text_has_changed_is_read_again(kind, monkeypatch):
    """A law by the length: keys of deeper layers that were read beyond the trained context are no other text's."""
    engine, turn = make_engine(kind), list(ROOTS[0][:8])
    for count in (3, 20, 3):  # the second answer ends beyond the 16 trained tokens
        fresh = list(make_engine(kind).stream(turn, SAMPLINGS[0], count))
        shapes = fed_tokens(engine, monkeypatch)
        assert list(engine.stream(turn, SAMPLINGS[0], count)) == fresh
        monkeypatch.undo()
        assert shapes[0] == (1, {8: 8, 13: 3, 35: 35}[len(turn)])
        turn += [*fresh, 40, 41]


@pytest.mark.parametrize("ahead", [1, 1000])
def test_what_has_left_a_ring_is_missed_by_nobody(ahead, monkeypatch):
    """Of a text with sinks that became longer than the window, also only by what was computed too far: who begins
    alike reads anew, and the same text goes on from where it was."""
    prompt = ROOTS[0][:7]
    for cut, more, count, dropped, then in ((7, (), 19, None, 7), (7, (), 30, None, 7), (16, (0, 0), 8, 6, 15)):
        first, again = Plan(0, cut, more, 0, 0, count, 0, dropped, None), Plan(0, then, (), 0, 0, 5, 1, None, None)
        engine = make_engine("sinks", 1)
        engine.ahead = ahead
        tokens, _ = play(engine, [first, again])
        assert tokens[1] == alone("sinks", again.prompt, 0, 0, 5, None)
    engine = make_engine("sinks", 1)
    said = list(engine.stream(prompt, SAMPLINGS[0], 30))
    shapes = fed_tokens(engine, monkeypatch)
    list(engine.stream([*prompt, *said, 40, 41], SAMPLINGS[0], 1))
    assert shapes == [(1, 3)]


def test_a_long_prompt_starves_nobody(monkeypatch):
    """Short prompts that come after a long one answer before it; running answers go on at every step."""
    monkeypatch.setattr(prompts, "LEAST", 2)
    monkeypatch.setattr(prompts, "BESIDE", {"cpu": 4})
    engine = make_engine("gqa")
    running = engine.add(Request([1], max_tokens=60))
    engine.step()
    long = engine.add(Request([3] * 50, max_tokens=2))
    short = engine.add(Request([4, 5], max_tokens=2))
    first: dict[int, int] = {}
    made = 1
    for now in range(30):
        events = engine.step()
        more = sum(len(event.tokens) for event in events if event.id == running)
        assert more or made == 60
        made += more
        for event in events:
            first.setdefault(event.id, now)
    assert first[short] <= 2 < first[long]


@pytest.mark.parametrize("ahead", [1, 1000])
def test_a_first_token_comes_with_the_step_that_reads_its_prompt(ahead):
    """Also where the host is a step behind: what was decoded in that step is still on its way then."""
    engine = make_engine("gqa")
    engine.ahead = ahead
    running = [engine.add(Request([i + 1], max_tokens=60)) for i in range(3)]
    for _ in range(4):
        engine.step()
    fresh = [engine.add(Request([7 + i, 8, 9], max_tokens=20)) for i in range(2)]
    told = {event.id: len(event.tokens) for event in engine.step()}
    assert told.keys() == {*running, *fresh} and all(told[id] == 1 for id in fresh)
    assert bool(engine._sent) is (ahead == 1)


def test_an_interruption_loses_nothing_that_was_on_its_way(monkeypatch):
    """Also where it comes between the reading of a prompt and its first token."""
    engine, roots = make_engine("several"), [list(root) for root in ROOTS]
    expected = [list(make_engine("gqa").stream(root, SAMPLINGS[2], 20, seed=i)) for i, root in enumerate(roots)]
    engine.ahead = 1
    ids = [engine.add(Request(root, SAMPLINGS[2], 20, seed=i)) for i, root in enumerate(roots)]
    said: dict[int, list[int]] = {id: [] for id in ids}
    see, steps = engine._see, itertools.count()

    def interrupted(left=0):
        if next(steps) % 3 == 1:
            raise KeyboardInterrupt
        see(left)

    monkeypatch.setattr(engine, "_see", interrupted)
    while engine.busy:
        with suppress(KeyboardInterrupt):
            for event in engine.step():
                said[event.id] += event.tokens
    assert [said[id] for id in ids] == expected


def test_rows_are_given_in_order_of_arrival():
    engine = make_engine("gqa", slots=2)
    ids = [engine.add(Request([i + 1], SAMPLINGS[0], 3)) for i in range(6)]
    done: list[Event] = []
    while engine.busy:
        done += [event for event in engine.step() if event.finish]
    assert [event.id for event in done] == ids


def test_broken_logits_end_one_request_alone():
    model = sharp_model(tiny_config(tied=False))
    model.embed_tokens.weight[13] = float("nan")
    engine = Engine(model, 67)
    good, bad = engine.add(Request([1, 2, 3], SAMPLINGS[0], 12)), engine.add(Request([4, 13], SAMPLINGS[0], 12))
    events = [event for _ in range(14) for event in engine.step()]
    assert [t for e in events if e.id == good for t in e.tokens] == Engine(model, 67).generate(
        [[1, 2, 3]], SAMPLINGS[0], 12
    )[0]
    (error,) = (e for e in events if e.id == bad)
    assert error.finish == "error" and not error.tokens and "not finite" in (error.error or "")


def test_memory_is_given_back():
    engine = make_engine("gqa")
    engine.generate([[i % 67] * 20 for i in range(40)], SAMPLINGS[0], 30)
    big = engine.cache.keys.numel()
    engine.trim(keep=1)
    assert engine.cache.keys.shape[1] == 1 and engine.cache.keys.numel() * 20 < big
    shapes = [slot.tokens for slot in engine.slots.all]
    running = engine.stream([*shapes[0], 5], SAMPLINGS[0], 10)
    begun = [next(running)]
    engine.trim()  # in the middle of an answer
    fresh = make_engine("gqa").stream([*shapes[0], 5], SAMPLINGS[0], 10)
    assert begun + list(running) == list(fresh)


@pytest.mark.parametrize("ahead", [1, 1000])
def test_random_numbers_go_on_after_an_interruption(ahead):
    """Of an answer that starts anew on the device, too."""
    expected = make_engine("gqa").generate([[1], [2]], SAMPLINGS[2], 60)
    engine = make_engine("gqa")
    engine.ahead = ahead
    streams = [engine.stream([i + 1], SAMPLINGS[2], 60, seed=i) for i in range(2)]
    found = [[next(stream) for _ in range(29)] for stream in streams]
    forward, engine.model.hidden = engine.model.hidden, None
    with pytest.raises(TypeError):
        next(engine.events(Request([1])))
    engine.model.hidden = forward
    assert [some + list(stream) for some, stream in zip(found, streams, strict=True)] == expected


def test_guesses_save_passes(monkeypatch):
    """A draft that is the model itself is always right; text that repeats is foreseen by what it repeats."""
    monkeypatch.setattr(Pace, "cost", 1.3)  # whatever the clock says
    model = model_of("gqa")
    plain = Engine(model, 67).generate([[5, 9, 2]], SAMPLINGS[2], 40)
    engine = Engine(model, 67, propose=Draft.of(copy.deepcopy(model), 67, most=4))
    shapes = fed_tokens(engine, monkeypatch)
    assert engine.generate([[5, 9, 2]], SAMPLINGS[2], 40) == plain
    assert len(shapes) == 1 + 1 + 8  # the first token, one to measure, then 5 at a time
    assert NGrams(2, 3)([1, 2, 3, 4, 5, 1, 2]) == [3, 4, 5] and NGrams()([1, 2, 3]) == []
    looking = NGrams()
    assert looking([4, 7, 7]) == [7] and looking([4, 7, 7, 8, 4]) == [7, 7, 8, 4]


def test_guesses_that_cost_more_than_they_bring_rest():
    """By a clock that is told: a pass takes as long as three steps and brings one token more, later four."""
    pace = Pace()
    guess, known = Guess(lambda known: [1], pace), [1, 2]
    assert guess(known, 9) == []  # before a plain step was measured
    pace.note(False, 2.0, 2)  # it compiled something
    for seconds in (0.01, 0.05, 0.01):
        pace.note(False, seconds, 1)
    pace.note(True, 0.03, 1)
    assert 0.01 <= pace.plain < 0.015 and pace.cost == pytest.approx(0.03 / pace.plain)
    asked = []
    for _ in range(200):
        asked.append(bool(guess(known, 9)))
        known += [3, 4] if asked[-1] else [3]
    assert 2 <= sum(asked) < 20  # tried again now and then
    guess.rest = 0
    for _ in range(20):
        asked.append(bool(guess(known, 9)))
        known += [3, 4, 5, 6, 7]
    assert all(asked[-20:])


def test_log_probabilities():
    engine, prompt = make_engine("gqa"), [5, 9, 2]
    told = Request(prompt, Sampling(temperature=0.8, top_k=5, frequency_penalty=0.5), 6, seed=3, logprobs=4)
    plain = engine.add(replace(told, logprobs=None))
    id = engine.add(told)
    events = [event for _ in range(7) for event in engine.step()]
    events = [part for event in events for part in event.split()]
    tokens = [token for event in events if event.id == id for token in event.tokens]
    assert tokens == [token for event in events if event.id == plain for token in event.tokens]
    assert not any(event.logprobs or event.tops for event in events if event.id == plain)
    logits = engine.model(torch.tensor([[*prompt, *tokens]]))[0, 2:-1].double().log_softmax(-1)
    for event, row in zip((e for e in events if e.id == id), logits, strict=True):
        assert event.logprobs == pytest.approx([row[event.tokens[0]].item()], abs=1e-4)
        best = row.topk(4)
        assert [token for token, _ in event.tops[0]] == best.indices.tolist()
        assert [value for _, value in event.tops[0]] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_rows_that_memory_holds_no_more_of():
    engine = make_engine("gqa")
    row = engine.cache.row_bytes(engine.window)
    assert row == engine.cache.keys[:, :1].nbytes * 2 // engine.cache.max_tokens * engine.window
    assert engine.slots.fill(3 * row + row // 2) == 3
    prompts = [[n + 1, 2] for n in range(7)]
    assert engine.generate(prompts, SAMPLINGS[0], 5) == make_engine("gqa").generate(prompts, SAMPLINGS[0], 5)
    engine.trim()
    assert engine.cache.keys.shape[1] == 3


def test_what_cannot_be_asked():
    engine = make_engine("gqa")
    with pytest.raises(InputError, match="token id outside 0 … 66"):
        engine.add(Request([67]))
    with pytest.raises(InputError, match="logit_bias: token 67 is outside the vocabulary of 67"):
        engine.add(Request([1], Sampling(logit_bias={67: 1.0})))
    id = engine.add(Request([1], max_tokens=0))
    assert engine.step() == [Event(id, finish="length")] and not engine.busy
