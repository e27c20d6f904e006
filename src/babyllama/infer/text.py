"""Events of one answer → its text, piece by piece; stop strings. Not here: how text is shown or sent."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from babyllama.infer.request import Event, Finish, Request
from babyllama.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from babyllama.infer.engine import Engine


class Text:
    """The text of one answer as it becomes certain: whole characters, without the stop token and special tokens. A
    character of which the end of the tokens left a part is left out.

    What could be the beginning of a stop string is held back until it is known. The first one that is found ends the
    text before it, and whoever feeds events then removes the request from the engine. `after` are the tokens of a text
    that the answer continues, so that a blank between the two is kept.

    Attributes:
        tokens: how many came, the one that ended the text included.
        finish: why the text ended, None while it goes on; a stop string counts as "stop".
        matched: the stop string that was found.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), after: Sequence[int] = ()) -> None:
        self.stop = [text for text in stop if text]
        self.tokens = 0
        self.finish: Finish | None = None
        self.matched: str | None = None
        self._stream, self._held = tokenizer.stream(after), ""

    def feed(self, event: Event) -> str:
        """The text that became certain with this event; often empty. After the end nothing comes any more."""
        if self.finish is not None:
            return ""
        if self.stop and len(event.tokens) > 1:  # which of them completes a stop string shows one by one
            return "".join(map(self.feed, event.split()))
        self.tokens += len(event.tokens)
        new = self._stream.push(*event.unstopped().tokens)
        if event.finish is not None:
            rest = self._stream.flush()
            new += rest.rstrip("\ufffd") if event.finish == "length" else rest  # it may be gone on with
        if not self.stop:
            self.finish = event.finish
            return new
        text, self._held = self._held + new, ""
        found = [(at, -len(stop), stop) for stop in self.stop if (at := text.find(stop)) >= 0]
        if found:
            at, _, self.matched = min(found)
            self.finish = "stop"
            return text[:at]
        self.finish = event.finish
        sure = len(text) if event.finish is not None else len(text) - self._open(text)
        self._held = text[sure:]
        return text[:sure]

    def _open(self, text: str) -> int:
        """How many last characters could be the beginning of a stop string."""
        sizes = (size for stop in self.stop for size in range(1, len(stop)) if text.endswith(stop[:size]))
        return max(sizes, default=0)


def pieces(engine: Engine, request: Request, text: Text) -> Generator[str, None, None]:
    """The answer's text as it comes, up to the first stop string; `text` is fed and tells the rest.

    Raises:
        InputError: as `Engine.events`.
    """
    with closing(engine.events(request)) as events:
        for event in events:
            if piece := text.feed(event):
                yield piece
            if text.finish is not None:
                return
