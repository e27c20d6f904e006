"""Sixty everyday questions in wordings that no training held, each alone and late in a conversation.

    python bench/everyday_rephrasings.py runs/quickstart/medical > answers.md

Asks through `babyllama chat` as people do, greedily, and prints a table to be judged by the rubric of
docs/quickstart-verdicts.md; the columns of verdicts are left empty.
"""

from __future__ import annotations

import subprocess
import sys

import xxhash

from babyllama.data.sources.knowledge import everyday

COUNT, BEFORE = 60, 10


def main() -> None:
    """Print the table."""
    records = sorted(everyday(), key=lambda r: xxhash.xxh3_64_intdigest(r["messages"][0]["content"].encode()))
    held_out = [record for record in records if record["held_out"]]
    asked = held_out[:COUNT]
    questions = [record["messages"][0]["content"] for record in asked]
    warming = [record["messages"][0]["content"] for record in held_out[COUNT : COUNT + BEFORE]]
    alone = answers(sys.argv[1], questions)
    together = answers(sys.argv[1], [*warming, *questions], "turns=true")[BEFORE:]
    print("| question | meant | alone | | in a conversation | |\n|---|---|---|---|---|---|")
    for record, first, second in zip(asked, alone, together, strict=True):
        question, meant = (message["content"] for message in record["messages"])
        print(f"| {question} | {meant} | {first} | | {second} | |")


def answers(run: str, questions: list[str], *settings: str) -> list[str]:
    """What the model says, a line each."""
    command = [sys.executable, "-m", "babyllama.cli", "chat", run, "sampling.temperature=0", *settings]
    said = subprocess.run(command, input="\n".join(questions) + "\n", capture_output=True, text=True, check=True)
    lines = [line for line in said.stdout.splitlines() if line.strip()]
    if len(lines) != len(questions):
        raise SystemExit(f"{len(questions)} questions, {len(lines)} lines of answers:\n{said.stdout[:2000]}")
    return lines


if __name__ == "__main__":
    main()
