"""The objective that a train recipe names, and its teacher. Not here: what it computes (train/distil.py)."""

from __future__ import annotations

import copy

from babyllama.commands.starting import check_head
from babyllama.errors import InputError
from babyllama.load import model_folder, read_model, read_tokenizer
from babyllama.model.transformer import Transformer
from babyllama.tokenizer.tokenizer import Tokenizer
from babyllama.train.losses.distil import Distil
from babyllama.train.losses.objectives import NextToken, Objective
from babyllama.train.losses.preference import Preference


def objective_of(choice: NextToken | Distil | Preference, model: Transformer, tokenizer: Tokenizer, context: int
                 ) -> Objective:  # fmt: skip
    """A callable of `choice`, for rows of `context` tokens. Where no teacher is named, `model` teaches as it is now:
    call before it is changed.

    Raises:
        InputError: the teacher cannot be read, has another tokenizer, fewer positions or does not fit.
    """
    if isinstance(choice, NextToken | Preference):
        return choice
    if choice.teacher is None:
        return choice.of(copy.deepcopy(model), model)
    folder = model_folder(choice.teacher)
    if read_tokenizer(folder).hash != tokenizer.hash:
        raise InputError(f"objective.teacher: {choice.teacher} has another tokenizer; give one with init's")
    teacher = read_model(folder)
    check_head(teacher, "objective.teacher", choice.teacher)
    if (positions := teacher.config.max_position_embeddings) < context:
        raise InputError(f"objective.teacher: {choice.teacher} has {positions:,} positions, and rows here have "
                         f"{context:,} tokens; give plan.context={positions}, or another teacher")  # fmt: skip
    return choice.of(teacher, model)
