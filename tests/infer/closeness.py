"""What two answers of one request may differ by where they were computed in another order, in 16 bits."""

from collections.abc import Sequence
from itertools import zip_longest

import torch

from babyllama.infer.choosing import uniforms
from babyllama.model.transformer import Transformer

SLACK = 0.01  # of probability: twice what bf16 moves it by at most in `test_closeness.py`


@torch.inference_mode()
def chance(exact: Transformer, text: Sequence[int], temperature: float, vocab_size: int) -> torch.Tensor:
    """Probability of each token up to it, in order of place, after a text: (V,) float64, by the model in float32."""
    device = exact.embed_tokens.weight.device
    logits = exact(torch.tensor([text], device=device))[0, -1, :vocab_size].double()
    return (logits / temperature).softmax(-1).cumsum(0).cpu()


def differ_by_rounding(exact: Transformer, prompt: Sequence[int], one: Sequence[int], other: Sequence[int],
                       temperature: float, seed: int, vocab_size: int) -> bool:  # fmt: skip
    """Whether, where two answers drawn at a temperature first differ, the random number is nearly at either's token.

    What follows a difference says nothing. A model that reads another row's keys or a wrong place differs at once and
    by any token.
    """
    for number, tokens in enumerate(zip_longest(one, other)):
        if tokens[0] == tokens[1]:
            continue
        if None in tokens:
            return False  # one goes on where the same token has ended the other
        upto = torch.cat([torch.zeros(1).double(), chance(exact, [*prompt, *one[:number]], temperature, vocab_size)])
        drawn = uniforms(seed, number + 1)[number]
        return all(upto[token] - SLACK <= drawn <= upto[token + 1] + SLACK for token in tokens)
    return True
