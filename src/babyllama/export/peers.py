"""One answer to each chat by one program: ours, transformers, llama.cpp, or a server that speaks OpenAI's protocol.

Each renders the chat by the template that came with its own files, encodes it, and answers greedily. Not here: what is
asked (prompts.py), how answers are compared (compare.py).
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from babyllama.atomic import read_json
from babyllama.errors import InputError, cause, remedy_for
from babyllama.infer.engine import Engine
from babyllama.infer.request import Request
from babyllama.infer.sampling import Sampling
from babyllama.model.config_json import OWN_TYPE
from babyllama.model.transformer import Transformer
from babyllama.tokenizer.chat import Message, render_chat
from babyllama.tokenizer.tokenizer import Tokenizer

Chat = list[Message]
TOP = 20  # how many of the first token's likeliest candidates are compared
GREEDY = Sampling(temperature=0.0)
ROWS = 50  # of a batch in transformers


class Answer(NamedTuple):
    """What one program made of one chat; None where it does not tell.

    prompt: ids of the rendered chat.  first: token → log-probability at the answer's first place: of the likeliest
    ones, or by text from a server.  tokens: of the answer, without what ended it.  ended: by itself.
    """

    prompt: list[int] | None
    first: dict[Any, float]
    tokens: list[int] | None
    text: str
    ended: bool


Peer = Callable[[Sequence[Chat], int], list[Answer]]  # (chats, the most tokens of an answer) → answers


def ours(model: Transformer, tokenizer: Tokenizer) -> Peer:
    """babyllama's own engine, all chats at once."""

    def answer(chats: Sequence[Chat], longest: int) -> list[Answer]:
        engine = Engine(model, tokenizer.vocab_size)
        asked = [render_chat(tokenizer, chat, True).tokens for chat in chats]
        ids = [engine.add(Request(prompt, GREEDY, longest, tokenizer.stop_ids, logprobs=TOP)) for prompt in asked]
        made: dict[int, list[Any]] = {i: [] for i in ids}
        while engine.busy:
            for event in engine.step():
                made[event.id].append(event)
        found = []
        for prompt, events in zip(asked, (made[i] for i in ids), strict=True):
            ended = events[-1].finish == "stop"
            tokens = [token for event in events for token in event.unstopped().tokens]
            found.append(Answer(prompt, dict(events[0].tops[0]), tokens, tokenizer.decode(tokens), ended))
        return found

    return answer


def in_transformers(folder: Path) -> Peer:
    """transformers from a folder, in float32: left-padded batches, as the folder itself says.

    Raises:
        InputError: transformers is not installed, or refuses the folder.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError:
        raise InputError("against=transformers needs the package transformers: pip install transformers") from None
    if read_json(folder / "config.json").get("model_type") == OWN_TYPE:
        raise InputError(f"{folder}: transformers does not open it, for only babyllama reads its weights; give the "
                         "model that it was made from")  # fmt: skip
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    except (OSError, ValueError, KeyError, ImportError) as error:  # ImportError: a packed folder needs one more package
        raise InputError(f"{folder}: transformers does not open it ({' '.join(str(error).split())[:200]})") from None
    if not tokenizer.chat_template:
        raise InputError(f"{folder}: has no chat template, so transformers cannot ask it; export a run, or add one")

    def answer(chats: Sequence[Chat], longest: int) -> list[Answer]:
        found: list[Answer] = []
        for at in range(0, len(chats), ROWS):
            batch = tokenizer.apply_chat_template(list(chats[at : at + ROWS]), add_generation_prompt=True, padding=True,
                                                  return_tensors="pt", return_dict=True)  # fmt: skip
            batch.pop("token_type_ids", None)
            made: Any = model.generate(**batch, max_new_tokens=longest, do_sample=False, output_logits=True,
                                  return_dict_in_generate=True)  # fmt: skip
            ends = model.generation_config.eos_token_id
            ends = set(ends if isinstance(ends, list) else [ends])
            rows = made.sequences[:, batch["input_ids"].shape[1] :].tolist()
            for k, row in enumerate(rows):
                stop = next((i for i, token in enumerate(row) if token in ends), len(row))
                prompt = batch["input_ids"][k][batch["attention_mask"][k].bool()].tolist()
                text = tokenizer.decode(row[:stop], skip_special_tokens=True)
                found.append(Answer(prompt, _likeliest(made.logits[0][k].float()), row[:stop], text, stop < len(row)))
        return found

    return answer


def _likeliest(logits: torch.Tensor) -> dict[Any, float]:
    """Every token's log-probability: (V,) → V entries."""
    return dict(enumerate(logits.log_softmax(-1).tolist()))


def in_llamacpp(file: Path) -> Peer:
    """llama.cpp from a GGUF file, with a float32 cache, without flash attention and with plain kernels: those that
    repack weights for one kind of CPU use instructions that not every machine allows.

    Raises:
        InputError: llama-cpp-python is not installed, or llama.cpp refuses the file.
    """
    try:
        library: Any = import_module("llama_cpp")
        form: Any = import_module("llama_cpp.llama_chat_format")
    except ImportError:
        raise InputError("against=llama.cpp needs llama-cpp-python: pip install llama-cpp-python") from None
    llama = opened(library, file)
    special = {name: llama._model.token_get_text(token) if token >= 0 else "" for name, token in
               (("bos_token", llama.token_bos()), ("eos_token", llama.token_eos()))}  # fmt: skip
    template = form.Jinja2ChatFormatter(llama.metadata["tokenizer.chat_template"], **special)
    adds_bos = llama.metadata.get("tokenizer.ggml.add_bos_token") == "true"

    def ends(token: int) -> bool:
        return library.llama_cpp.llama_vocab_is_eog(llama._model.vocab, token)

    def answer(chats: Sequence[Chat], longest: int) -> list[Answer]:
        found = []
        for chat in chats:
            prompt = llama.tokenize(template(messages=chat).prompt.encode(), add_bos=adds_bos, special=True)
            llama.reset()
            first, tokens = _next_logits(llama, prompt), list[int]()
            likeliest = int(first.argmax())
            while len(tokens) < longest and not ends(likeliest):
                tokens.append(likeliest)
                if len(tokens) < longest:
                    likeliest = int(_next_logits(llama, [likeliest]).argmax())
            said = llama.detokenize(tokens, prev_tokens=prompt).decode("utf-8", "replace")
            found.append(Answer(prompt, _likeliest(first), tokens, said, len(tokens) < longest))
        return found

    return answer


def opened(library: Any, file: Path) -> Any:
    """A file as llama_cpp's `Llama`, opened as `in_llamacpp` says.

    Raises:
        InputError: llama.cpp refuses it.
    """
    bindings, threads = library.llama_cpp, torch.get_num_threads()
    given = bindings.llama_model_default_params

    def plain() -> Any:
        found = given()
        found.use_extra_bufts = False
        return found

    bindings.llama_model_default_params = plain
    try:
        return library.Llama(str(file), n_ctx=0, type_k=0, type_v=0, flash_attn=False, verbose=False,
                             n_threads=threads, n_threads_batch=threads)  # fmt: skip
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{file}: llama.cpp does not open it ({error})") from None
    finally:
        bindings.llama_model_default_params = given


def _next_logits(llama: Any, tokens: list[int]) -> torch.Tensor:
    """(V,) after some more tokens."""
    llama.eval(tokens)
    return torch.from_numpy(np.ctypeslib.as_array(llama._ctx.get_logits(), (llama.n_vocab(),)).copy())


def on_a_server(url: str, key: str) -> Peer:
    """A server of OpenAI's protocol, ``http://…/v1``, of several models ``http://…/v1#NAME``: text,
    log-probabilities by text, and how an answer ended.

    Raises:
        InputError: no answer, or a refusal; no such model, or several and none is named.
    """
    url, _, named = url.partition("#")

    def call(path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key or 'none'}"}
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{url.rstrip('/')}/{path}", data, headers)) as reply:
                return json.load(reply)
        except (OSError, ValueError) as error:
            remedy = remedy_for(getattr(error, "code", 0), "give the server's address up to /v1")
            raise InputError(f"{url}/{path}: {cause(error)}; {remedy}") from None

    there = [model["id"] for model in call("models")["data"]]
    if named not in there and (named or len(there) != 1):
        raise InputError(f"{url}: has the models {', '.join(there) or 'none'}; name one: against={url}#NAME")
    model = named or there[0]

    def answer(chats: Sequence[Chat], longest: int) -> list[Answer]:
        found = []
        for chat in chats:
            asked = {"model": model, "messages": chat, "max_tokens": longest, "temperature": 0, "logprobs": True,
                     "top_logprobs": 5}  # fmt: skip
            (choice,) = call("chat/completions", asked)["choices"]
            content = (choice.get("logprobs") or {}).get("content") or [{}]
            first = {top["token"]: top["logprob"] for top in content[0].get("top_logprobs", [])}
            text, ended = choice["message"]["content"] or "", choice["finish_reason"] == "stop"
            found.append(Answer(None, first, None, text, ended))
        return found

    return answer
