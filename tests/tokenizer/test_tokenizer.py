"""One vocabulary, three readers (sentencepiece, tokenizer.json, transformers): the same ids; files; streams."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import regex
import sentencepiece
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from small import ADVERSARIAL, SMALL_TEXT, sentencepiece_model
from transformers import AutoTokenizer

from babyllama.errors import InputError
from babyllama.tokenizer.from_sentencepiece import convert_sentencepiece
from babyllama.tokenizer.special import SPECIAL_TOKENS
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.tokenizer.train import train_bpe

TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.text(
    st.sampled_from("  \n今天模型aeTh.，1😀"), max_size=30
)


def chatglm2() -> Path:
    path = os.environ.get("BABYLLAMA_CHATGLM2")
    if not path:
        pytest.skip("set BABYLLAMA_CHATGLM2 to the path of ChatGLM2's tokenizer.model")
    return Path(path)


@pytest.fixture(scope="session")
def small_sentencepiece(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tokenizer.model"
    path.write_bytes(sentencepiece_model())
    return path


@pytest.fixture(scope="module", params=["own", "sentencepiece", "chatglm2"])
def folder(request, tmp_path_factory, small_sentencepiece: Path) -> Path:
    """A folder written by `save`, one for each kind of vocabulary."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "own":
        train_bpe(SMALL_TEXT, 460).save(folder)
    else:
        Tokenizer.load(chatglm2() if request.param == "chatglm2" else small_sentencepiece).save(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


Oracle = Callable[[str], list[int]]


class Merging:
    """A folder's byte-level BPE by the book: cut the text, then join the pair of lowest rank until none is left.

    Of tokenizer.json it takes the vocabulary, the merges and the patterns; nothing here encodes but this class.
    """

    def __init__(self, folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        self.ids: dict[str, int] = content["model"]["vocab"]
        self.ranks = {tuple(pair): rank for rank, pair in enumerate(content["model"]["merges"])}
        steps = content["pre_tokenizer"]["pretokenizers"]
        self.cuts = [regex.compile(step["pattern"]["Regex"]) for step in steps if step["type"] == "Split"]
        plain = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's letters for bytes
        odd = [byte for byte in range(256) if byte not in plain]
        self.letters = {byte: chr(byte) for byte in plain} | {byte: chr(256 + k) for k, byte in enumerate(odd)}

    def __call__(self, text: str) -> list[int]:
        words = [text]
        for cut in self.cuts:
            words = [part for word in words for part in self._isolated(cut, word) if part]
        return [self.ids[piece] for word in words for piece in self._joined(word)]

    @staticmethod
    def _isolated(cut: regex.Pattern, word: str) -> list[str]:
        borders = sorted({0, len(word), *(edge for match in cut.finditer(word) for edge in match.span())})
        return [word[start:stop] for start, stop in pairwise(borders)]

    def _joined(self, word: str) -> list[str]:
        pieces = [self.letters[byte] for byte in word.encode()]
        while pairs := [(self.ranks[pair], at) for at, pair in enumerate(pairwise(pieces)) if pair in self.ranks]:
            at = min(pairs)[1]
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        return pieces


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Oracle:
    """Ids of a text by other code than ours: BPE by hand; beside SentencePiece, which encodes, the file read alone."""
    if not (folder / "tokenizer.model").is_file():
        return Merging(folder)
    alone = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    alone.encode_special_tokens = True
    return lambda text: alone.encode(text, add_special_tokens=False).ids


def test_a_model_file_that_is_not_there_is_not_to_be_made(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.model: no such file; give the path"):
        Tokenizer.load(tmp_path / "nowhere.model")


@pytest.mark.parametrize("text", ADVERSARIAL, ids=ascii)
def test_adversarial_texts_have_one_encoding(tokenizer: Tokenizer, oracle: Oracle, text: str) -> None:
    assert tokenizer.encode(text) == oracle(text) == tokenizer.encode_batch(["x", text])[1]
    assert not tokenizer.special_ids & set(tokenizer.encode(text))
    if "▁" not in text:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=TEXT)
def test_any_text_has_one_encoding(tokenizer: Tokenizer, oracle: Oracle, text: str) -> None:
    assert tokenizer.encode(text) == oracle(text)
    if "▁" not in text:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@given(texts=st.lists(TEXT, max_size=4))
def test_batch_equals_single(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_sentencepiece_itself_gives_these_ids(small_sentencepiece: Path) -> None:
    source = sentencepiece.SentencePieceProcessor(model_file=str(small_sentencepiece))
    backend = Tokenizer.load(small_sentencepiece).backend
    for text in [*ADVERSARIAL, *SMALL_TEXT]:
        assert backend.encode(text).ids == source.encode(text), text


@given(text=TEXT)
def test_transformers_gives_these_ids(theirs, tokenizer: Tokenizer, text: str) -> None:
    if not any(token in text for token in (*SPECIAL_TOKENS, "<unk>")):
        assert theirs(text)["input_ids"] == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text))


def test_transformers_knows_the_special_tokens(theirs, tokenizer: Tokenizer) -> None:
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (
        tokenizer.eos_id, tokenizer.eos_id, tokenizer.pad_id)  # fmt: skip
    assert theirs.pad_token in ("<s>", "<unk>") and theirs.padding_side == "left"
    assert {t.content for t in theirs.added_tokens_decoder.values() if t.special} == set(tokenizer.markers)
    assert len(theirs) == tokenizer.vocab_size
    for role, token in tokenizer.role_ids.items():
        assert theirs.convert_tokens_to_ids(f"<|{role}|>") == token


@given(data=st.data())
def test_stream_equals_decode_for_any_ids(tokenizer: Tokenizer, data: st.DataObject) -> None:
    low = st.integers(0, min(tokenizer.vocab_size, 270))  # special tokens and bytes
    ids = data.draw(st.lists(low | st.integers(0, tokenizer.vocab_size + 3), max_size=30))
    stream, run = tokenizer.stream(), data.draw(st.integers(1, 12))
    assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids)
    assert tokenizer.decode_all([ids, [], ids[1:]]) == [tokenizer.decode(ids), "", tokenizer.decode(ids[1:])]
    runs = [stream.push(*ids[at : at + run]) for at in range(0, len(ids), run)]
    assert "".join(runs) + stream.flush() == tokenizer.decode(ids)


@given(text=TEXT)
def test_stream_gives_whole_characters(tokenizer: Tokenizer, text: str) -> None:
    stream = tokenizer.stream()
    pushed = [stream.push(token) for token in tokenizer.encode(text.replace("\ufffd", ""))]
    assert "\ufffd" not in "".join(pushed)


def test_stream_does_not_wait_longer_than_a_character(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream()
    ids = tokenizer.encode("今天天气很好")
    assert "".join(map(stream.push, ids)) == "今天天气很好"


def test_special_tokens_can_be_shown(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.bos_id, *tokenizer.encode("好"), tokenizer.eos_id]
    assert tokenizer.decode(ids) in ("好", " 好")
    assert tokenizer.decode(ids, skip_special=False).replace(" ", "") == "<s>好</s>"


def test_save_load_save_is_byte_identical(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {p.name: p.read_bytes() for p in folder.iterdir()}


def test_hash_is_of_the_vocabulary_alone(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert tokenizer.with_template("bos").hash == tokenizer.hash
    shutil.copy(folder / "tokenizer.json", tmp_path)
    assert Tokenizer.load(tmp_path).hash == tokenizer.hash
    assert train_bpe(SMALL_TEXT, 400).hash != tokenizer.hash


def test_template_survives_save_and_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.with_template("bos").save(tmp_path / "ours")
    assert Tokenizer.load(tmp_path / "ours").chat_template == "bos"
    AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    again = Tokenizer.load(tmp_path / "theirs")
    assert (again.chat_template, again.hash) == ("bos", tokenizer.hash)


def test_pickle_keeps_special_tokens_out_of_text(tokenizer: Tokenizer, oracle: Oracle) -> None:
    again = pickle.loads(pickle.dumps(replace(tokenizer, stops=frozenset({9}))))
    assert again.encode("</s>") == oracle("</s>") == tokenizer.encode("</s>") and 9 in again.stop_ids


def test_a_run_is_searched_in_its_model_folder(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    assert Tokenizer.load(tmp_path).vocab_size == Tokenizer.load(str(folder / "tokenizer.json")).vocab_size


def test_chatglm2_has_the_earlier_projects_ids() -> None:
    tokenizer = Tokenizer.load(chatglm2())
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (64793, 1, 2)
    assert tokenizer.role_ids == {"system": 64789, "user": 64790, "assistant": 64791, "tool": 64792}
    assert len(json.loads(tokenizer.backend.to_str())["model"]["merges"]) == 90061


def test_a_foreign_folder_without_roles(tmp_path: Path, small_sentencepiece: Path) -> None:
    content = json.loads(Tokenizer.load(small_sentencepiece).backend.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if "|" not in token["content"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "</s>"}, "bos_token": null}')
    shutil.copy(small_sentencepiece, tmp_path / "tokenizer.model")
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.role_ids, tokenizer.chat_template, tokenizer.bos_id) == ({}, "bos", 1)
    with pytest.raises(InputError, match="use 'bos'"):
        tokenizer.with_template("roles")


def test_another_models_sentencepiece_is_not_used(tmp_path: Path, small_sentencepiece: Path) -> None:
    train_bpe(SMALL_TEXT, 400).save(tmp_path)
    shutil.copy(small_sentencepiece, tmp_path / "tokenizer.model")
    assert Tokenizer.load(tmp_path).sentencepiece_model is None


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("none", "", "neither tokenizer.json nor"),
        ("tokenizer.json", "{", "not a readable tokenizer"),
        ("tokenizer.model", "x", "not a SentencePiece model"),
        ("tokenizer.model", "", "not a SentencePiece model"),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, name: str, text: str, fault: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=fault):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("config", "fault"), [("{", "not valid JSON"), ("[]", "JSON object"), ('{"eos_token": "?!"}', "'\\?!' is not in"),
                          ('{"eos_token": 3}', "must be a string")]
)  # fmt: skip
def test_bad_configs_are_named(tmp_path: Path, config: str, fault: str) -> None:
    train_bpe(SMALL_TEXT, 300).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(InputError, match=fault):
        Tokenizer.load(tmp_path)


def test_missing_folder_and_unknown_template(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        Tokenizer.load(tmp_path / "nothing")
    with pytest.raises(InputError, match="choose one of roles, bos"):
        tokenizer.with_template("chatml")


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    for call in (lambda: tokenizer.encode("a\ud83d"), lambda: tokenizer.encode_batch(["b", "a\ud83d"])):
        with pytest.raises(InputError, match="U\\+D83D at character 1"):
            call()


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"model_type": "unigram"}, "not a BPE model"),
        ({"byte_fallback": False}, "no byte fallback"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normaliser changes the text"),
        ({"remove_extra_whitespaces": True}, "normaliser changes the text"),
        ({"add_dummy_prefix": False}, "normaliser changes the text"),
        ({"user_defined_symbols": "天气猫"}, "user-defined pieces"),
    ],
    ids=str,
)
def test_models_without_exact_conversion_are_refused(settings: dict, fault: str) -> None:
    with pytest.raises(InputError, match=f"my.model: .*{fault}"):
        convert_sentencepiece(sentencepiece_model(**settings), "my.model")
