"""The adapter for lm-evaluation-harness: every figure equals its own `hf` model's on the same folder, item for item."""

from __future__ import annotations

import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install -e '.[eval]'")
pytestmark = pytest.mark.slow

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

from babyllama.harness import Babyllama  # noqa: E402
from babyllama.model.checkpoint import save_model  # noqa: E402
from babyllama.model.config import ModelConfig  # noqa: E402
from babyllama.tokenizer.train import train_bpe  # noqa: E402
from conftest import sharp_model  # noqa: E402

TEXTS = ["天下雨了，地上湿了。", "一本书，一只鸟。你好，很高兴见到你。ABCD. 答案：一加一等于二。"]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("harness")
    tokenizer = train_bpe(TEXTS * 3, 330)
    model = sharp_model(ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=56, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=48))  # fmt: skip
    save_model(model, folder, **tokenizer.config_ids)
    tokenizer.save(folder)
    theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4)
    return Babyllama(str(folder), device="cpu", precision="fp32"), theirs


def asked(kind, *arguments):
    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


def test_loglikelihoods_are_equal_also_of_what_is_cut(both, capsys):
    mine, theirs = both
    shots = "一本书\nA. 鸟\n答案： A\n\n"
    pairs = [(f"{shots * n}天下雨了，地上\nA. 湿了\nB. 书\n答案：", f" {c}") for n in (0, 1, 5) for c in "ABCD"]
    pairs += [("", "天下雨了"), ("你好 ", "，见到你"), ("地上", "湿了。")]
    requests = asked("loglikelihood", *pairs)
    found, expected = mine.loglikelihood(requests), theirs.loglikelihood(requests, disable_tqdm=True)
    assert [one[0] for one in found] == pytest.approx([one[0] for one in expected], abs=1e-4)
    assert [one[1] for one in found] == [bool(one[1]) for one in expected]
    assert mine.cut >= 4 and "prompts were cut on the left to fit the context of 48" in capsys.readouterr().err


def test_rolling_begins_after_the_end_token(both):
    mine, theirs = both
    assert mine.prefix_token_id == theirs.prefix_token_id == mine.text.eos_id
    requests = asked("loglikelihood_rolling", *((text * n,) for text in TEXTS for n in (1, 7)))
    expected = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    assert mine.loglikelihood_rolling(requests) == pytest.approx(expected, abs=1e-3, rel=1e-6)


def test_answers_are_equal_and_end_where_they_should(both):
    mine, theirs = both
    plain = asked("generate_until", *((text, {"until": [], "max_gen_toks": 12, "do_sample": False}) for text in TEXTS))
    expected = theirs.generate_until(plain, disable_tqdm=True)
    found = mine.generate_until(plain)
    assert found == expected and len(found[1]) > 5
    ended = asked("generate_until", (TEXTS[1], {"until": [found[1][2]], "max_gen_toks": 12, "do_sample": False}))
    assert mine.generate_until(ended) == theirs.generate_until(ended, disable_tqdm=True)
    many = asked("generate_until", *((text[:size], {"until": found[1][3:5], "max_gen_toks": size, "do_sample": False})
                                     for text in TEXTS for size in range(1, 9)))  # fmt: skip
    said = mine.generate_until(many)
    assert said == theirs.generate_until(many, disable_tqdm=True) and len(set(said)) > 4
