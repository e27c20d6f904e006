"""Documents → token files. What other programs read of them: `Prepared`, `TokenStore`."""

from babyllama.data.shards.shards import Prepared, TokenStore

__all__ = ["Prepared", "TokenStore"]
