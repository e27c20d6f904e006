"""Forms that an answer may have to keep to, as values: what a client demands.

Nothing here needs PyTorch. Not here: which tokens a form allows (grammar.py), how a template writes calls
(tokenizer/tools.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from babyllama.errors import InputError
from babyllama.tokenizer.tools import ToolForm

# Where one of these says which keys there may be, nothing is added to what it says.
_KEYS = {"additionalProperties", "unevaluatedProperties", "patternProperties", "$ref", "allOf", "anyOf", "oneOf", "not"}


@dataclass(frozen=True)
class JsonForm:
    """JSON that a schema describes. `param`: the field of a request that demands it.

    Args:
        begun: the tokens of its beginning, which the answer goes on with.
    """

    param: ClassVar[str] = "response_format"
    schema: dict[str, Any]
    begun: tuple[int, ...] = ()


@dataclass(frozen=True)
class CallsForm:
    """One call or several, of some tools, as a template writes them.

    Args:
        tools: name → JSON Schema of the arguments.
        most: calls at most.
        thinks: the answer begins inside a thought, which comes to its end before the first call.
    """

    param: ClassVar[str] = "tools"
    form: ToolForm
    tools: dict[str, dict[str, Any]]
    most: int = 1
    thinks: bool = False


Form = JsonForm | CallsForm


def arguments_schema(name: str, parameters: dict[str, Any] | None) -> dict[str, Any]:
    """The schema of a tool's arguments: of an object, which has the properties that are named and no others unless it
    says so. Raises InputError for what describes no object."""
    found = {"type": "object", **({"properties": {}} if parameters is None else parameters)}
    if found["type"] != "object":
        raise InputError(f"the parameters of {name} must describe an object, with type: object")
    if "properties" in found and not found.keys() & _KEYS:
        found["additionalProperties"] = False
    return found
