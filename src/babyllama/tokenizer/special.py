"""The special tokens of every vocabulary made here, and the roles that a chat may have."""

from __future__ import annotations

ROLES = ("system", "user", "assistant", "tool")

BOS, EOS = "<s>", "</s>"
ROLE_TOKENS = {role: f"<|{role}|>" for role in ROLES}
SPECIAL_TOKENS = (BOS, EOS, *ROLE_TOKENS.values())
