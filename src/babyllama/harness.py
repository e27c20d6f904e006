"""babyllama models in lm-evaluation-harness: ``python -m babyllama.harness run --model babyllama --model_args path=…``.

The harness finds models by what has been imported, so this module is its command line with one model more. Requests
are its own; they are computed by our scoring (what prompts share is read once) and our engine. Needs lm_eval (the
extra ``eval``). Not here: tasks of our own (evals/).
"""

# pyright: reportMissingImports=false
# lm_eval is large and in no set-up that everybody has: the types are checked without it too.

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from babyllama.errors import InputError, needs_extra
from babyllama.evals.scoring import Pair, score
from babyllama.infer.engine import Engine
from babyllama.infer.request import Request
from babyllama.infer.sampling import Sampling
from babyllama.infer.text import Text
from babyllama.load import load, pick_device, pick_precision

try:
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
except ImportError:
    raise needs_extra("lm_eval", "eval") from None


@register_model("babyllama")
class Babyllama(TemplateLM):
    """A run or a Hugging Face folder.

    Text is encoded as the harness's ``hf`` model does, so that both give the same figures: nothing stands before a
    prompt but what the folder's tokenizer adds; an empty one, and a text that is rolled over, has the token that texts
    begin after (the end token). `cut` counts the requests whose beginning did not fit the context.

    Args:
        path: of the model.  max_length: the context; default: the model's.  max_gen_toks: of an answer.
    """

    def __init__(self, path: str, device: str = "auto", precision: str = "auto", max_length: int | None = None,
                 max_gen_toks: int = 256, **_: Any) -> None:  # fmt: skip
        super().__init__()
        where = pick_device(device)
        self.path, self.max_gen_toks, self.cut = path, int(max_gen_toks), 0
        self.loaded = load(Path(path), where, pick_precision(precision, where))  # type: ignore[arg-type]
        self.text = self.loaded.tokenizer
        self.max_length = min(int(max_length or sys.maxsize), self.loaded.model.config.max_position_embeddings)

    @property
    def eot_token_id(self) -> int:
        return self.text.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self.text.start_ids[0]

    @property
    def tokenizer_name(self) -> str:
        return self.path.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        begins = self.text.adds_bos and add_special_tokens is not False
        return [*(self.text.start_ids if begins else ()), *self.text.encode(string)]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As the harness's own, but all texts become tokens in one go, and a prompt of several requests does once."""
        asked = [(before, before.rstrip(), after) for before, after in (request.args for request in requests)]
        texts = list(dict.fromkeys(text for before, bare, after in asked for text in (bare, before + after)))
        ids = dict(zip(texts, self.text.encode_much(texts), strict=True))
        starts = self.text.start_ids if self.text.adds_bos else []
        prompts = {bare: [*starts, *ids[bare].tolist()] or [self.prefix_token_id] for _, bare, _ in asked}
        return self._loglikelihood_tokens([
            ((before, after), prompts[bare], ids[before + after][len(ids[bare]) :].tolist())
            for before, bare, after in asked])  # fmt: skip

    def chat_template(self, chat_template: bool | str = False) -> str:
        return self.text.chat_template if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        raise InputError("--apply_chat_template: a template written as text would let a prompt hold markers; ask "
                         "chats with: babyllama evaluate MODEL 'tasks=[{name: ceval, chat: true}]'")  # fmt: skip

    def _loglikelihood_tokens(self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False,
                              **_: Any) -> list[tuple[float, bool]]:  # fmt: skip
        pairs, cut = [], 0
        for (context, _continuation), before, after in requests:
            if len(after) > self.max_length:
                raise InputError(f"{self.path}: a continuation of {len(after)} tokens does not fit the context of "
                                 f"{self.max_length} (after {str(context)[-20:]!r})")  # fmt: skip
            room = self.max_length + 1 - len(after)
            cut += len(before) > room
            pairs.append(Pair(before[-room:] if len(before) > room else before, after))
        self._say_cut(cut, len(pairs))
        found = score(self.loaded.model, pairs, vocab_size=self.text.vocab_size)
        return [(one.loglikelihood, one.greedy) for one in found]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        pairs, counts = [], []
        for request in requests:
            windows = utils.get_rolling_token_windows(self.tok_encode(request.args[0]), self.prefix_token_id,
                                                      self.max_length, 1)  # fmt: skip
            made = [Pair(before, after) for before, after in map(utils.make_disjoint_window, windows)]
            counts.append(len(made))
            pairs += made
        found = iter(score(self.loaded.model, pairs, vocab_size=self.text.vocab_size))
        return [sum(next(found).loglikelihood for _ in range(count)) for count in counts]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The answers, many at a time; each ends before the first of the texts that end it, and computes no further."""
        engine, cut = Engine(self.loaded.model, self.text.vocab_size), 0
        texts, found = list[Text](), [""] * len(requests)
        for context, asked in (request.args for request in requests):
            until = asked.get("until") or []
            most = int(asked.get("max_gen_toks") or asked.get("max_tokens") or self.max_gen_toks)
            room = self.max_length - min(most, self.max_length - 1)
            prompt = self.tok_encode(context) or [self.prefix_token_id]
            cut += len(prompt) > room
            heat = float(asked.get("temperature") or 0.0) if asked.get("do_sample") else 0.0
            engine.add(Request(prompt[-room:], Sampling(temperature=heat), most, self.text.stop_ids))
            texts.append(Text(self.text, [until] if isinstance(until, str) else until, prompt[-room:]))
        self._say_cut(cut, len(requests))
        while engine.busy:
            for event in engine.step():  # ids count from 0
                if event.error:
                    raise InputError(f"{self.path}: {event.error}")
                text = texts[event.id]
                found[event.id] += text.feed(event)
                if text.finish is not None and event.finish is None:
                    engine.remove(event.id)
        return found

    def _say_cut(self, cut: int, asked: int) -> None:
        self.cut += cut
        if cut:
            print(f"babyllama: {cut} of {asked} prompts were cut on the left to fit the context of {self.max_length}; "
                  "their scores are not those of the whole prompts", file=sys.stderr)  # fmt: skip


def main() -> None:
    """The harness's command line."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except InputError as error:
        print(f"babyllama: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
