"""CTranslate2 converts the folder that `export to=hf` makes with its own converter, and answers the same.

CONTRIBUTING.md says how to run this, in an environment that has `ctranslate2`.
"""

from __future__ import annotations

import importlib.util

import pytest
from exported import published, talker, vocabulary

from babyllama.export.peers import ours
from babyllama.export.prompts import prompts

pytestmark = pytest.mark.slow
LONGEST = 12


@pytest.mark.parametrize("kind", ["own", "sentencepiece"])
def test_answers(kind, tmp_path):
    """200 of 200, in float32; it is given tokens, since it has no tokenizer."""
    if importlib.util.find_spec("ctranslate2") is None:
        pytest.fail("ctranslate2 is not installed here; CONTRIBUTING.md says how")
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    tokenizer = vocabulary(kind, tmp_path)
    model = talker(tokenizer)
    folder = published(model, tokenizer, tmp_path / "out")
    TransformersConverter(str(folder)).convert(str(tmp_path / "converted"), quantization="float32")
    generator = ctranslate2.Generator(
        str(tmp_path / "converted"), device="cpu", compute_type="float32", intra_threads=1
    )
    expected = ours(model, tokenizer)([[{"role": "user", "content": text}] for text in prompts(200)], LONGEST)
    asked = [[tokenizer.backend.id_to_token(token) for token in answer.prompt] for answer in expected]
    ends = [tokenizer.eos_id, tokenizer.turn_end]
    found = generator.generate_batch(asked, max_length=LONGEST, sampling_topk=1, include_prompt_in_result=False,
                                     end_token=ends, return_end_token=False)  # fmt: skip
    same = [answer.tokens == result.sequences_ids[0] for answer, result in zip(expected, found, strict=True)]
    assert sum(same) == 200
