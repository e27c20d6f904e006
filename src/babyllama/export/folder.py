"""A Hugging Face folder that is complete for publishing: weights, tokenizer, card, licence."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from babyllama.export.card import write_card
from babyllama.model.checkpoint import save_model
from babyllama.model.config_json import to_hugging_face
from babyllama.model.transformer import Transformer
from babyllama.quant.folder import packing_of
from babyllama.tokenizer.tokenizer import Tokenizer


def check_readable(model: Transformer, method: str | None) -> None:
    """Raise InputError for a RoPE scaling or packed weights that no other program reads."""
    packing = packing_of(model, method)
    to_hugging_face(model.config, 0, 0, "float32", stock=True, own=packing is not None and packing.own)


def fill(folder: Path, model: Transformer, tokenizer: Tokenizer, source: Path, name: str, method: str | None,
         licence: str, text: Path | None, sampling: Mapping[str, float]) -> None:  # fmt: skip
    """Write everything into an empty folder.

    Args:
        source: the run that the card is about.  method: who packed the weights, where they are packed.
        licence: the model's, by the hub's name.  text: the file that becomes LICENSE.
        sampling: how its answers are drawn unless users say.
    """
    save_model(model, folder, packing=packing_of(model, method), sampling=sampling, **tokenizer.config_ids)
    tokenizer.save(folder)
    write_card(folder, source, name, licence)
    if text is not None:
        shutil.copyfile(text, folder / "LICENSE")
