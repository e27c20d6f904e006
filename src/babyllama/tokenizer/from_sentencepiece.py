"""A SentencePiece BPE model (ChatGLM2's, LLaMA's) → tokenizer.json, to identical ids.

What has no exact counterpart is refused. Not here: encoding, reading or writing files.
"""

from __future__ import annotations

import sentencepiece
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers

from babyllama.errors import InputError
from babyllama.tokenizer.special import BOS, EOS

SPACE = "\u2581"  # ▁, how SentencePiece writes a blank


def convert_sentencepiece(model: bytes, where: str) -> tokenizers.Tokenizer:
    """The model's pieces, its unknown, bos and eos marked special; `where` names it in errors.

    SentencePiece joins the neighbours whose union has the best score; BPE here joins the pair with the lowest rank.
    So each split of each piece into two pieces is a merge, ranked by the score of the whole.

    Raises:
        InputError: not a BPE model, or one with byte fallback off or a normaliser that changes the text.
    """
    try:
        source = sentencepiece.SentencePieceProcessor()
        source.load_from_serialized_proto(model)  # unlike the constructor, it also refuses an empty file
    except RuntimeError:
        raise InputError(f"{where}: not a SentencePiece model, or damaged; fetch it again") from None
    pieces = {source.id_to_piece(i): i for i in range(len(source))}
    merges = _merges(source, pieces)
    _check_convertible(source, pieces, merges, where)
    unknown = source.id_to_piece(source.unk_id())
    bpe = models.BPE(pieces, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    backend = tokenizers.Tokenizer(bpe)
    backend.normalizer = normalizer()
    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(back)
    add_special(backend, [unknown, BOS, EOS])
    return backend


def normalizer() -> normalizers.Normalizer:
    """A text gets a blank in front, also one that follows a special token; an empty text gets none."""
    return normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])


def add_special(backend: tokenizers.Tokenizer, names: list[str]) -> None:
    """Mark `names` as special; those that are no piece yet get the next ids."""
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])


def _merges(source: sentencepiece.SentencePieceProcessor, pieces: dict[str, int]) -> list[tuple[str, str]]:
    special = (source.is_control, source.is_unknown, source.is_byte)
    plain = {piece: i for piece, i in pieces.items() if not any(is_special(i) for is_special in special)}
    splits = ((piece, piece[:k], piece[k:]) for piece in plain for k in range(1, len(piece)))
    ranked = [
        (-source.get_score(plain[p]), plain[a], plain[b], a, b) for p, a, b in splits if a in plain and b in plain
    ]
    return [(a, b) for *_, a, b in sorted(ranked)]


def _check_convertible(
    source: sentencepiece.SentencePieceProcessor, pieces: dict[str, int], merges: list[tuple[str, str]], where: str
) -> None:
    probe = "  Ａ①ﬁ\t\r\n\u3000é e\u0301  x "
    joined = {a + b for a, b in merges}
    plain = [p for p, i in pieces.items() if not (source.is_control(i) or source.is_unknown(i) or source.is_byte(i))]
    faults = {
        "it lacks <s> or </s>": not (BOS in pieces and EOS in pieces),
        "it has no byte fallback": not source.is_byte(pieces.get("<0x00>", source.unk_id())),
        "its normaliser changes the text": source.normalize(probe) != SPACE + probe.replace(" ", SPACE),
        "it is not a BPE model": any(source.get_score(i) % 1 for i in pieces.values()),
        "it has unused or user-defined pieces": any(source.is_unused(i) for i in pieces.values())
        or any(len(piece) > 1 and piece not in joined for piece in plain),
    }
    for fault, found in faults.items():
        if found:
            raise InputError(f"{where}: cannot be converted exactly: {fault}; give a folder with its tokenizer.json")
