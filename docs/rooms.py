"""The picture in architecture.md, drawn from the imports: `make map` after a change of those.

An arrow goes from a room to one that it imports. Left out are arrows that a way over other rooms says already.
"""

from __future__ import annotations

import re
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

PAGE = Path(__file__).with_name("architecture.md")
FENCE = re.compile(r"(?<=```mermaid\n)[^`]*")
INNER = {  # rooms within rooms
    "data": ("microworld", "toolworld", "sources", "clean", "shards", "streams"),
    "train": ("losses", "optimizers", "engines", "rl"),
}
TOGETHER = {
    "cli": ("__main__", "cli", "verbs", "words", "index"),
    "base": (
        "amounts",
        "atomic",
        "errors",
        "hardware",
        "interrupts",
        "keys",
        "marking",
        "moved",
        "plain_yaml",
        "recipe",
        "refusals",
        "run",
    ),
    "train/plan": ("train.averaging", "train.guard", "train.lisa", "train.plan", "train.state"),
}
LABELS = {
    "cli": "cli, verbs, words, index",
    "base": "run, recipe, keys, hardware, atomic, errors, amounts, interrupts, marking",
    "train/plan": "train/ plan, guard, lisa, averaging, state", "train": "train/ trainer, …", "load": "load",
}  # fmt: skip


def room_of(module: str) -> str | None:
    """A dotted module → its room; None for the package itself."""
    name = module.partition(".")[2]
    for room, members in TOGETHER.items():
        if any(name == member or name.startswith(f"{member}.") for member in members):
            return room
    first, _, rest = name.partition(".")
    inner = rest.partition(".")[0]
    return f"{first}/{inner}" if inner in INNER.get(first, ()) else first or None


def imports() -> dict[str, set[str]]:
    """Room → the rooms that its files import."""
    graph = grimp.build_graph("babyllama", cache_dir=None)
    found: dict[str, set[str]] = {}
    for module in graph.modules:
        if (room := room_of(module)) and (module.count(".") > 1 or room not in INNER):
            others = {room_of(other) for other in graph.find_modules_directly_imported_by(module)}
            found.setdefault(room, set()).update(other for other in others if other and other != room)
    return found


def needed(found: dict[str, set[str]]) -> dict[str, set[str]]:
    """Without the arrows that a longer way says already, from top to bottom. Raises CycleError for a circle."""
    below: dict[str, set[str]] = {}  # all that a room reaches
    for room in TopologicalSorter(found).static_order():
        below[room] = set().union(*({other} | below[other] for other in found.get(room, ())))
    kept = {room: {o for o in others if not any(o in below[via] for via in others)} for room, others in found.items()}
    return {room: kept.get(room, set()) for room in reversed(below)}


def picture() -> str:
    """Mermaid text."""
    arrows = needed(imports())
    number = {room: f"r{i}" for i, room in enumerate(sorted(arrows))}
    lines = [f'  {number[room]}["{LABELS.get(room, room + "/")}"]' for room in sorted(arrows)]
    lines += [f"  {number[a]} --> {number[b]}" for a in sorted(arrows) for b in sorted(arrows[a])]
    return "\n".join(["flowchart TD", *lines, ""])


if __name__ == "__main__":
    PAGE.write_text(FENCE.sub(lambda _: picture(), PAGE.read_text("utf-8"), count=1), "utf-8")
