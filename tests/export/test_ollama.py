"""The Modelfile's Go template writes what the chat template does, by a small reader of Go's templates written here."""

from __future__ import annotations

import re

import pytest
from exported import vocabulary

from babyllama.errors import InputError
from babyllama.export.ollama import called, modelfile
from babyllama.infer.sampling import Sampling
from babyllama.tokenizer.chat import render_chat


def said(template, messages):
    """Interprets range, if, else, end, eq, variables and fields: what the templates here use of text/template."""
    pieces = [p for p in re.split(r"(\{\{.*?\}\})", template) if p]
    out, names = [], {}

    def end_of(start):
        depth, other = 0, None
        for k in range(start, len(pieces)):
            word = pieces[k].strip("{} ").split(" ")[0] if pieces[k].startswith("{{") else ""
            depth += word in ("range", "if")
            if word == "else" and depth == 0:
                other = k
            if word == "end":
                if depth == 0:
                    return k, other
                depth -= 1
        raise AssertionError("no end")

    def value(text, dot):
        if text.startswith('"'):
            return text[1:-1].encode().decode("unicode_escape")
        return {"true": True, "false": False}.get(text, names.get(text)) if not text.startswith(".") else dot[text[1:]]

    def run(start, stop, dot):
        k = start
        while k < stop:
            if not pieces[k].startswith("{{"):
                out.append(pieces[k])
            else:
                words = pieces[k].strip("{} ").split(" ")
                if words[0] in ("range", "if"):
                    end, other = end_of(k + 1)
                    if words[0] == "range":
                        for item in value(words[1], dot):
                            run(k + 1, end, item)
                    elif value(words[2], dot) == value(words[3], dot) if words[1] == "eq" else value(words[1], dot):
                        run(k + 1, end if other is None else other, dot)
                    elif other is not None:
                        run(other + 1, end, dot)
                    k = end
                elif len(words) == 3 and words[1] in (":=", "="):
                    names[words[0]] = value(words[2], dot)
                else:
                    out.append(value(" ".join(words), dot))
            k += 1

    run(0, len(pieces), {"Messages": [{"Role": m["role"], "Content": m["content"]} for m in messages]})
    return "".join(out)


CHATS = [["user"], ["system", "user"], ["user", "assistant", "user"], ["system", "user", "assistant", "tool"],
         ["system", "user", "assistant", "user", "assistant", "user"]]  # fmt: skip


@pytest.mark.parametrize("template", ["roles", "bos"])
@pytest.mark.parametrize("roles", CHATS, ids="-".join)
def test_the_template(template, roles, tmp_path):
    tokenizer = vocabulary("own", tmp_path).with_template(template)
    chat = [{"role": role, "content": f"{role} {i}今天。"} for i, role in enumerate(roles)]
    text = modelfile(tokenizer, "a.gguf", 64, Sampling(temperature=0.7, repetition_penalty=1.1))
    written = re.search(r'TEMPLATE """(.*?)"""', text, re.DOTALL)[1]
    ours = tokenizer.decode(render_chat(tokenizer, chat, True).tokens, skip_special=False)
    assert said(written, chat) == ours
    parameters = re.findall(r"^PARAMETER (\S+) (.*)$", text, re.MULTILINE)
    assert (
        text.startswith("FROM ./a.gguf\n") and ("stop", '"</s>"') in parameters and ("stop", '"<|user|>"') in parameters
    )
    assert {("num_ctx", "64"), ("temperature", "0.7"), ("repeat_penalty", "1.1"), ("top_k", "0")} < set(parameters)


def test_a_jinja_template_has_no_words_in_go(tmp_path):
    tokenizer = vocabulary("own", tmp_path).with_template("{{ messages[0]['content'] }}")
    with pytest.raises(InputError, match="chat template: this model's is Jinja"):
        modelfile(tokenizer, "a.gguf", 64, Sampling())


@pytest.mark.parametrize(
    ("name", "made"),
    [("sft", "sft"), ("我的 sft-4bit", "sft-4bit"), ("模型", "model"), ("a b", "a-b"), ("v1.2_x", "v1.2_x")],
)
def test_names_as_ollama_takes_them(name, made):
    assert called(name) == made
