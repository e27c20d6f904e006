"""Ollama's Modelfile for a GGUF file beside it: the chat template in Go's words, stop words, parameters.

Not here: the GGUF file.
"""

from __future__ import annotations

import re

from babyllama.errors import InputError
from babyllama.infer.sampling import Sampling
from babyllama.tokenizer.chat import TEMPLATES
from babyllama.tokenizer.tokenizer import Tokenizer

# As chat.py's templates of the same names; BOS and EOS stand for the tokens. A chat ends with a question.
_GO = {
    "roles": '{{ range .Messages }}<|{{ .Role }}|>{{ .Content }}{{ if eq .Role "assistant" }}EOS{{ end }}{{ end }}'
    "<|assistant|>",
    "bos": '{{ $open := false }}{{ range .Messages }}{{ if eq .Role "assistant" }}BOS{{ .Content }}EOS'
    "{{ $open = false }}{{ else }}"
    '{{ if $open }}{{ "\\n" }}{{ end }}{{ .Content }}{{ $open = true }}{{ end }}{{ end }}BOS',
}


def called(name: str) -> str:
    """A model's name as Ollama takes it: Latin letters, digits, and - _ . between them."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-._") or "model"


def modelfile(tokenizer: Tokenizer, file: str, context: int, sampling: Sampling) -> str:
    """The text of a Modelfile that says FROM ./`file`.

    Raises:
        InputError: a foreign chat template, which is Jinja; Ollama knows Go's templates only.
    """
    if tokenizer.chat_template not in TEMPLATES:
        raise InputError("chat template: this model's is Jinja text of another program, Ollama's are Go's; write a "
                         "Modelfile with a TEMPLATE by hand for the file of to=gguf")  # fmt: skip
    names = {"BOS": tokenizer.bos_token, "EOS": tokenizer.eos_token}
    template = _GO[tokenizer.chat_template]
    for word, token in names.items():
        template = template.replace(word, token)
    stops = sorted({str(tokenizer.backend.id_to_token(i)) for i in tokenizer.stop_ids} - {"<unk>"})
    parameters = {"num_ctx": context, "num_predict": -1, "temperature": sampling.temperature, "top_k": sampling.top_k,
                  "top_p": sampling.top_p, "min_p": sampling.min_p, "repeat_penalty": sampling.repetition_penalty,
                  "repeat_last_n": -1}  # fmt: skip
    lines = [f"FROM ./{file}", f'TEMPLATE """{template}"""', *(f'PARAMETER stop "{stop}"' for stop in stops),
             *(f"PARAMETER {key} {value}" for key, value in parameters.items())]  # fmt: skip
    return "\n".join(lines) + "\n"
