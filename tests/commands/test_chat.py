"""The verb chat: streaming, turns, commands, room in the context; a real terminal and a real pipe."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys

import pytest

from babyllama.commands import chat
from babyllama.commands.chat import ChatRecipe
from babyllama.commands.prepare import PrepareRecipe
from babyllama.commands.prepare import main as prepare
from babyllama.errors import InputError
from babyllama.infer.engine import Engine
from babyllama.infer.sampling import Sampling
from babyllama.recipe import load_recipe
from babyllama.serve import terminal
from babyllama.serve.chat_commands import COMMANDS, run_command, slashed
from babyllama.serve.conversation import Conversation, printable
from babyllama.serve.terminal import Talk
from babyllama.tokenizer.chat import render_chat

from .small_run import CHATS, CONTEXT, messages_of, save_taught, small_tokenizer, taught_model

GREEDY = Sampling(temperature=0.0)


def conversation(sampling: Sampling = GREEDY, **more) -> Conversation:
    tokenizer = small_tokenizer()
    return Conversation(Engine(taught_model(), tokenizer.vocab_size), tokenizer, sampling, **more)


def stage(chat: Conversation, **more) -> Talk:
    """Where commands are given, with models by their paths' names."""

    def open_model(path):
        if path.name == "no":
            raise InputError("no: is not there")
        return chat.engine, chat.tokenizer

    return Talk(chat, open_model, more.pop("read", None), turns=True)


def test_answers_arrive_as_whole_characters(monkeypatch):
    """An emoji is four tokens here; no piece holds half of it, however many tokens the compiled step gives at once."""
    monkeypatch.setattr("babyllama.infer.native.BUDGET", 10**12)
    many = list(conversation().ask(CHATS[1][0]))
    assert "".join(many) == CHATS[1][1] and not any("\ufffd" in piece for piece in many)
    monkeypatch.setattr("babyllama.infer.native.BUDGET", 0)
    pieces = list(conversation().ask(CHATS[1][0]))
    assert "".join(pieces) == CHATS[1][1] and len(pieces) > 5
    assert len(small_tokenizer().encode("😀")) > 1
    assert not any("\ufffd" in piece for piece in pieces) and pieces[-1] == "😀"


def test_the_switch_for_thinking(tmp_path):
    """The prompt ends in the thought's beginning, which is a part of the answer from then on, and saved apart."""
    talk = conversation(max_tokens=4)
    plain = talk.prompt("问")
    assert run_command(stage(talk), "/think on") == "answers think first"
    opening = "<think>\n"
    assert talk.prompt("问") == plain + talk.tokenizer.encode(opening)
    said = "".join(talk.ask("问"))
    assert talk.turns == [("问", opening + said, ())] and talk.messages[1]["reasoning_content"] == said
    run_command(stage(talk), "/think off")
    assert talk.tokenizer.decode(talk.prompt("问")).endswith("<think>\n\n</think>\n\n")
    run_command(stage(talk), f"/save {tmp_path / 'a.jsonl'}")
    run_command(stage(talk), f"/load {tmp_path / 'a.jsonl'}")
    assert talk.messages[1]["reasoning_content"] == said
    with pytest.raises(InputError, match="on or off"):
        run_command(stage(talk), "/think maybe")


def test_the_prompt_is_the_one_of_training():
    """Fault 18: what is asked is a prefix of what was learned, token for token, in every turn."""
    talk = conversation()
    messages = []
    for question, answer in CHATS[:2]:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        learned = render_chat(talk.tokenizer, messages)
        prompt = talk.prompt(question)
        assert learned.tokens[: len(prompt)] == prompt and not any(learned.mask[len(prompt) - 1 : len(prompt)])
        assert learned.mask[len(prompt)]
        assert "".join(talk.ask(question)) == answer
    assert talk.messages == messages


def test_the_oldest_turns_go_when_the_context_is_full():
    talk = conversation()
    for i in range(12):
        before = len(talk.turns)
        dropped = talk.make_room(CHATS[i % 4][0])
        assert len(talk.prompt(CHATS[i % 4][0])) + CONTEXT // 4 <= CONTEXT
        assert before - dropped == len(talk.turns)
        assert list(talk.ask(CHATS[i % 4][0]))
    assert len(talk.turns) < 12
    with pytest.raises(InputError, match=f"context is {CONTEXT}: shorten the prompt"):
        list(talk.ask("长" * 200))
    assert talk.turns[-1][0] != "长" * 200


def test_a_chat_can_be_repeated_by_its_seed():
    def answers(seed: int) -> list[str]:
        talk = conversation(Sampling(temperature=3.0, seed=seed), max_tokens=8)
        return ["".join(talk.ask(question)) for question, _ in CHATS[:2]]

    assert answers(3) == answers(3) != answers(4)
    talk = conversation(Sampling(temperature=3.0), max_tokens=8)
    run_command(stage(talk), "/seed 3")
    assert ["".join(talk.ask(question)) for question, _ in CHATS[:2]] == answers(3)


def test_commands(tmp_path):
    talk = conversation()
    on = stage(talk)
    list(talk.ask(CHATS[0][0]))
    file = tmp_path / "a chat.jsonl"
    assert "saved 1 turn to" in run_command(on, f"/save {file}")
    assert json.loads(file.read_text("utf-8")) == {"messages": talk.messages}
    assert all(name in run_command(on, "/help") for name in COMMANDS)
    run_command(on, "/system  你是一个医生。 ")
    assert talk.messages[0] == {"role": "system", "content": "你是一个医生。"}
    assert talk.prompt("问")[0] == talk.tokenizer.role_ids["system"]
    run_command(on, f"/save {tmp_path / 'with system'}")
    run_command(on, "/reset")
    run_command(on, "/system")
    assert talk.messages == []
    assert "loaded 1 turn" in run_command(on, f"/load {tmp_path / 'with system'}")
    assert talk.system == "你是一个医生。" and talk.turns == [(*CHATS[0], ())]
    file.write_text(file.read_text("utf-8"), "utf-8-sig")  # as Windows' editor saves it
    run_command(on, f"/load {file}")
    assert talk.system == "" and talk.turns == [(*CHATS[0], ())]


OPEN = '{"messages": [{"role": "user", "content": "a"}]}'
BAD = [("/seed x", "whole number"), ("/seed", "whole number"), ("/save", "file name"), ("/halp", "help"),
       ("/save {here}", "exists"), ("/save {folder}/b", "nothing said"), ("/load", "file that /save wrote"),
       ("/load {folder}/b", "cannot be read"), ("/load {here}", "no chat of the form"),
       ("/load {open}", "all answered"), ("/load {deep}", "no chat of the form .*nested more than 200 deep"),
       ("/load {half}", "/load .*half: this model cannot read it: text holds half a surrogate pair"),
       ("/save ~nobody-is-called-so/x", "no home folder"), ("/load ~nobody-is-called-so/x", "^there is no home"),
       ("/edit", "nothing was asked"), ("/regenerate", "nothing was asked"),
       ("/continue", "no answer that could go on"),
       ("/system " + "长" * 200, "system message: 1?[0-9]{2,} tokens leave no room for a question"),
       ("/compare x", "nothing was asked")]  # fmt: skip


@pytest.mark.parametrize(("line", "fault"), BAD)
def test_bad_commands_change_nothing(tmp_path, line, fault):
    (tmp_path / "here").write_text("[1]")
    (tmp_path / "open").write_text(OPEN)
    (tmp_path / "deep").write_text('{"messages": ' + "[" * 100_000)
    (tmp_path / "half").write_text(OPEN[:-2] + r', {"role": "assistant", "content": "\udfff"}]}')
    talk = conversation()
    with pytest.raises(InputError, match=fault):
        run_command(stage(talk), line.format(folder=tmp_path, **{file.name: file for file in tmp_path.iterdir()}))
    assert (talk.turns, talk.system, talk.seed) == ([], "", 0)


def test_asking_again_and_comparing(capsys):
    """Another answer draws with the next seed and takes the old one's place; a comparison leaves the chat alone."""
    talk = conversation(Sampling(temperature=3.0), max_tokens=8)
    on = stage(talk)
    first = "".join(talk.ask(CHATS[0][0]))
    run_command(on, "/regenerate")
    assert [turn.question for turn in talk.turns] == [CHATS[0][0]]
    second, other = talk.turns[0].answer, conversation(Sampling(temperature=3.0, seed=1), max_tokens=8)
    assert second == "".join(other.ask(CHATS[0][0])) != first
    capsys.readouterr()
    run_command(on, "/compare runs/other")
    run_command(on, "/compare")
    shown = capsys.readouterr()
    assert shown.out == f"{second}\n" * 2 and shown.err == "── runs/other\n" * 2
    with pytest.raises(InputError, match="no: is not there"):
        run_command(on, "/compare no")
    assert talk.turns == [(CHATS[0][0], second, ())]
    run_command(on, f"/edit {CHATS[1][0]}")
    assert [turn.question for turn in talk.turns] == [CHATS[1][0]]


def test_an_answer_goes_on_until_it_has_ended(tmp_path, capsys):
    """Piece by piece it is the answer that comes as a whole, in the same turn, also from a file."""
    talk, (question, answer) = conversation(max_tokens=1), CHATS[2]
    on, rounds = stage(talk), 0
    list(talk.ask(question))
    while talk.text.finish != "stop":
        assert talk.turns[-1].answer == answer[: len(talk.turns[-1].answer)] and rounds < 50
        run_command(on, "/continue")
        rounds += 1
        if rounds == 2:
            run_command(on, f"/save {tmp_path / 'begun.jsonl'}")
            run_command(on, "/reset")
            run_command(on, f"/load {tmp_path / 'begun.jsonl'}")
    assert talk.turns == [(question, answer, ())] and rounds > 2
    assert answer.endswith(capsys.readouterr().out.replace("\n", ""))
    for fault in ("the last answer has ended; /regenerate asks", "there is no answer that could go on"):
        with pytest.raises(InputError, match=f"/continue: {fault}"):
            run_command(on, "/continue")
        run_command(on, "/reset")


def test_an_answer_that_goes_on_sees_what_it_saw_as_far_as_that_fits():
    never = Sampling(temperature=0, logit_bias=dict.fromkeys(small_tokenizer().stop_ids, -100.0))
    talk = conversation(never, max_tokens=8, memory=1)
    for question, _ in CHATS[:3]:
        list(talk.ask(question))
    whole, turn = conversation(never, max_tokens=16, memory=1), talk.unfinished()
    whole.turns = [*talk.turns]
    list(talk.ask(*turn))
    assert talk.turns[-1] == (turn.question, "".join(whole.ask(turn.question)), ())
    talk.max_tokens, talk.memory, on = CONTEXT, None, stage(talk)
    while len(talk.turns) > 1:  # which make room
        run_command(on, "/continue")
    talk.turns = kept = [turn._replace(answer="长" * 200)]
    with pytest.raises(InputError, match=f"the context of {CONTEXT} tokens is full: there is no room to go on$"):
        run_command(on, "/continue")
    assert talk.turns == kept == [turn._replace(answer="长" * 200)]


def test_control_characters_never_reach_the_terminal():
    assert printable("\x1b[2J\x07好\n\t吧\x7f\x9b") == "[2J好\n\t吧"


def test_piped_questions_through_a_real_process(tmp_path):
    folder = save_taught(tmp_path / "model")
    lines = [CHATS[0][0], "", "/nonsense", CHATS[2][0], "、reset", CHATS[1][0], "长" * 300, "／quit", "never read"]
    program = (
        "from babyllama.commands.chat import *; from babyllama.recipe import load_recipe; import sys\n"
        "try: main(load_recipe(ChatRecipe, None, sys.argv[1:]))\n"
        "finally: 'torch._dynamo' in sys.modules and sys.exit(1)"
    )  # fmt: skip  (PyTorch's compiler, which takes two seconds)
    done = subprocess.run(
        [sys.executable, "-c", program, f"model={folder}", "temperature=0", "repetition_penalty=1", "device=cpu"],
        input="\n".join(lines).encode(), capture_output=True, timeout=60,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})  # fmt: skip
    assert done.returncode == 2, done.stderr.decode()
    # The question of 300 characters fits no context: its fault is on stderr, and the program goes on.
    assert done.stdout.decode().splitlines() == [CHATS[0][1], CHATS[2][1], CHATS[1][1]]
    notes = done.stderr.decode()
    assert "/nonsense: no such command" in notes and "shorten the prompt" in notes and "Traceback" not in notes


@pytest.mark.parametrize("turns", [False, True])
def test_piped_lines_stand_alone_unless_they_are_turns(monkeypatch, capsys, turns):
    talk, prompts = conversation(), []
    events = talk.engine.events
    monkeypatch.setattr(talk.engine, "events", lambda request: prompts.append(request.prompt) or events(request))
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{question}\n" for question, _ in CHATS[:2])))
    terminal.talk(talk, lambda path: pytest.fail("opens another model"), turns=turns)
    assert capsys.readouterr().out.splitlines() == [answer for _, answer in CHATS[:2]]
    alone = render_chat(talk.tokenizer, [{"role": "user", "content": CHATS[1][0]}], add_generation_prompt=True).tokens
    assert (prompts[1] == alone) is not turns and len(talk.turns) == 1 + turns


def test_a_piped_line_of_other_bytes_is_named_and_the_next_is_answered(monkeypatch, capsys):
    """And who piped it learns by the exit code that not all was answered, and how to say what the bytes are."""
    gbk = "你好".encode("gb18030").decode("utf-8", "surrogateescape")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"\udcff\n{gbk}\n{CHATS[0][0]}\n"))
    with pytest.raises(SystemExit, match="2"):
        terminal.talk(conversation(), lambda path: pytest.fail("opens another model"))
    said = capsys.readouterr()
    assert said.out == CHATS[0][1] + "\n" and "not asked, for it is not valid utf-8: \\udcff" in said.err
    assert "as GBK (GB18030) it reads '你好': set PYTHONIOENCODING=gb18030" in said.err


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_what_is_piped(monkeypatch, capsys, encoding):
    """As Windows' editor and PowerShell write files."""
    typed = "".join(f"{question}\r\n" for question, _ in CHATS[:2]).encode(encoding)
    stream = io.TextIOWrapper(io.BufferedReader(io.BytesIO(typed)), "utf-8", errors="surrogateescape")  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "stdin", stream)
    terminal.talk(conversation(), lambda path: pytest.fail("opens another model"))
    assert capsys.readouterr().out.splitlines() == [answer for _, answer in CHATS[:2]]


def test_piped_utf_16_without_a_mark_is_not_asked(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"a\0b\0\n\0{CHATS[0][0]}\n{CHATS[0][0]}\n"))
    with pytest.raises(SystemExit, match="2"):
        terminal.talk(conversation(), lambda path: pytest.fail("opens another model"))
    said = capsys.readouterr()
    assert said.out == CHATS[0][1] + "\n" and said.err.count("as text in UTF-16 does: save it as UTF-8") == 2


def test_an_answer_that_is_cut_off_says_by_what(capsys):
    """The longest answer, or the end of the context: logit bias keeps the end token away."""
    never = Sampling(temperature=0, logit_bias=dict.fromkeys(small_tokenizer().stop_ids, -100.0))
    for most, why in ((3, "cut off at max_tokens=3, /continue goes on)"), (10**6, "tokens is full)")):
        chat = conversation(never, max_tokens=most)
        stage(chat, read=lambda text: "").answer(CHATS[0][0])
        assert capsys.readouterr().out.rstrip().endswith(why)


def test_main_in_process(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    save_taught(run / "model")
    monkeypatch.setattr(sys, "stdin", io.StringIO(CHATS[3][0] + "\n"))
    overrides = [f"model={run}", "sampling.temperature=0", "repetition_penalty=1.0", "device=cpu", "precision=fp32"]
    recipe = load_recipe(ChatRecipe, None, overrides)
    assert recipe.sampling.over({}).top_p == 0.9  # the verb's own defaults stay
    chat.main(recipe)
    assert capsys.readouterr().out == CHATS[3][1] + "\n"
    with pytest.raises(InputError, match="does not exist; train one with: babyllama train"):
        chat.main(load_recipe(ChatRecipe, None, [f"model={tmp_path}/nothing"]))
    (tmp_path / "sft-Q8_0.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"is a file, .* give the run that it was made of"):
        chat.main(load_recipe(ChatRecipe, None, [f"model={tmp_path}/sft-Q8_0.gguf"]))
    (run / "run.json").write_text('{"verb": "prepare"}')
    shutil.rmtree(run / "model")
    with pytest.raises(InputError, match="holds a prepare run, which has no model"):
        chat.main(recipe)


def trained(folder, chats: list[list[dict[str, str]]] | None, corpora: str = "chat"):
    """A run folder whose recipe names data prepared of `chats`, or of texts; None: the data are gone."""
    run, data = folder / "run", folder / "data"
    save_taught(run / "model")
    if chats is not None:
        rows = [{"messages": chat} if corpora == "chat" else {"text": chat[0]["content"]} for chat in chats]
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
        corpus = f"[{{path: {folder}/rows.jsonl, kind: {corpora}}}]"
        overrides = [f"out={data}", f"tokenizer={run}/model", f"corpora={corpus}", "validation=0", "workers=1"]
        prepare(load_recipe(PrepareRecipe, None, overrides))
    (run / "recipe.yaml").write_text(f"data:\n  path: {data}\n")
    return run


def test_history_is_as_long_as_in_training_and_is_said(tmp_path, monkeypatch, capsys):
    """Nineteen single questions and one long chat: each question is asked by itself; the chat itself is kept."""
    single = [messages_of(f"{i}{CHATS[0][0]}", CHATS[0][1]) for i in range(19)]
    run = trained(tmp_path, [*single, [m for chat in CHATS for m in messages_of(*chat)]])
    found = chat.learned(run, small_tokenizer())
    assert found == (1, f"0{CHATS[0][0]}")
    assert chat.learned(run / "model", small_tokenizer()) == found
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(question for question, _ in CHATS * 3)))
    overrides = [f"model={run}", "temperature=0", "repetition_penalty=1", "device=cpu"]
    capsys.readouterr()
    chat.main(load_recipe(ChatRecipe, None, overrides))
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [answer for _, answer in CHATS * 3]
    first = shown.err.splitlines()[0]
    assert str(run) in first and "asked by itself" in first and f"try: 0{CHATS[0][0]}" in first


def test_memory_is_what_the_model_sees():
    talk = conversation(memory=1)
    for question, answer in CHATS[:3]:
        assert "".join(talk.ask(question)) == answer
    seen = [*messages_of(*CHATS[2]), {"role": "user", "content": "x"}]
    assert talk.prompt("x") == render_chat(talk.tokenizer, seen, add_generation_prompt=True).tokens
    assert len(talk.turns) == 3


def test_a_refused_question_forgets_nothing():
    talk = conversation()
    assert list(talk.ask(CHATS[0][0]))
    for _ in range(2):
        assert talk.make_room("长" * 200) == 0
        with pytest.raises(InputError, match="shorten the prompt"):
            list(talk.ask("长" * 200))
    assert [turn.question for turn in talk.turns] == [CHATS[0][0]]


def test_what_is_not_known_is_not_said(tmp_path):
    texts = trained(tmp_path / "texts", [messages_of(*pair) for pair in CHATS], corpora="text")
    found = chat.learned(texts, small_tokenizer())
    assert found.turns == 0 and "trained on texts" in chat.remarks(texts, small_tokenizer(), found, None)[0]
    gone = trained(tmp_path / "gone", None)
    assert chat.learned(gone, small_tokenizer()) == (None, None) == chat.learned(tmp_path / "no", small_tokenizer())
    assert chat.remarks(gone, small_tokenizer(), chat.Lessons(), None) == (str(gone),)


@pytest.mark.parametrize(("samples", "asked"), [
    ("{chat: true, prompts: [你是谁？, 春天]}", ("你是谁？", "春天")),
    ("{chat: false, prompts: [春天]}", ()),
    ("{}", ()),
])  # fmt: skip
def test_questions_are_those_of_its_trainings_samples(samples, asked, tmp_path):
    """Also of what was made of that run; none of a folder that no run has made."""
    run = trained(tmp_path, None)
    with (run / "recipe.yaml").open("a") as recipe:
        recipe.write(f"samples: {samples}\n")
    assert chat.questions_of(run) == chat.questions_of(run / "model") == asked
    assert chat.questions_of(tmp_path) == ()


@pytest.mark.parametrize(("typed", "meant"), [
    ("／system　你好", "/system　你好"), ("、save a.jsonl", "/save a.jsonl"), ("/help", "/help"), ("、", "、"),
    ("／是什么", "／是什么"), ("、和，有什么不同", "、和，有什么不同"), ("你好／reset", "你好／reset"), ("", ""),
])  # fmt: skip
def test_a_slash_of_a_chinese_input_method_is_one_before_a_command_only(typed, meant):
    assert slashed(typed) == meant
