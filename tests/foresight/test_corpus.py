"""What is looked at of a corpus."""

import numpy as np

from babyllama.data.shards.shards import TokenStore
from babyllama.foresight.corpus import sampled


def test_of_a_corpus_that_is_held_out_whole_there_is_nothing_to_see():
    """Such as tool_combinations, beside which others are trained on."""
    assert list(sampled(TokenStore((), (), "chat", np.dtype("<u2")), 10)) == []
