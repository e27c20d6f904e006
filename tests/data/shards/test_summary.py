"""What `prepare` says of a folder at its end."""

from types import SimpleNamespace

import numpy as np
import pytest

from babyllama.data.shards.summary import _lengths


@pytest.mark.parametrize("longest,share", [(257, ""), (258, "256: 50.0%")])
def test_a_chat_longer_than_a_context_and_the_token_that_it_predicts_is_counted(longest, share):
    (line,) = _lengths({"a": SimpleNamespace(document_offsets=np.array([0, 10, 10 + longest]))}, "a chat")
    assert f"the longest {longest}" in line
    assert line.endswith(f"longer than a context of {share} (training cuts these)" if share else f"{longest}")
