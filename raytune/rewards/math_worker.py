"""The process that compares mathematical answers, one JSON line in, one JSON line out, until its input ends.

It stands alone, because a comparison may take for ever or all memory: raytune.rewards.math kills it at the limit.
math-verify's own limit is an alarm signal, which only a main thread has and which cannot break a long computation.

    {"truth": "\\frac{1}{2}"}                    ->  true: this is a right answer that can be compared with
    {"truth": "\\frac{1}{2}", "answer": "0.5"}   ->  true: they are equal
"""

import json
import logging
import os
import resource
import signal
import sys
from functools import lru_cache
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

MEMORY = 2 * 1024**3
"""Bytes of address space; 9**9**9 asks for more than a machine has."""

ORPHAN_SECONDS = 60
"""An unhandled alarm ends a process whose owner died in the middle of a comparison."""

LATEX = LatexExtractionConfig(boxed_match_priority=0)
"""What is boxed comes before any other formula of an answer."""

FORMULA = frozenset("\\^_=+*/()[]{}<>|0123456789")
"""Characters that tell a formula without dollar signs from a word."""


@lru_cache(maxsize=256)
def parse_truth(text: str) -> list[Any]:
    """The expressions in a right answer, empty if there are none; the dollar signs may be missing."""
    found = parse(text, parsing_timeout=0)
    if found or not FORMULA & set(text):
        return found
    return parse(f"${text}$", parsing_timeout=0)


def agrees(truth: str, answer: str) -> bool:
    """Whether the answer's result equals the right one: boxed first, then other formulas, then plain numbers."""
    found = parse(answer, [LATEX, ExprExtractionConfig()], parsing_timeout=0)
    return verify(parse_truth(truth), found, timeout_seconds=0)


def reply(question: dict[str, str]) -> bool:
    """Answer one line."""
    if "answer" in question:
        return agrees(question["truth"], question["answer"])
    return bool(parse_truth(question["truth"]))


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    print("ready", file=replies, flush=True)
    # What libraries print must neither look like a reply nor fill a pipe that nobody reads.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.disable(logging.CRITICAL)  # math-verify warns of the missing limits with every call
    for line in sys.stdin:
        signal.alarm(ORPHAN_SECONDS)
        print(json.dumps(reply(json.loads(line))), file=replies, flush=True)
        signal.alarm(0)


if __name__ == "__main__":
    main()
