"""Samples of what the model was asked and answered: transcripts.jsonl, and TensorBoard's text page."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raytune.monitors.tensorboard import TensorBoardTexts

FILE = "transcripts.jsonl"


Turn = tuple[str, str]
"""Who wrote a part of an answer, "policy" or "environment", and what."""


# Made by actors.transcripts, read by people.
@dataclass(frozen=True, slots=True)
class Transcript:
    """One answer. `reward` and `parts` (by reward function) are None where it could not be scored; `versions` are
    (weight version, first token, end) of its spans. turns: the answer cut up, where an environment had a part in it.
    extra: what reward functions noted of it (log_extra).

    Example: Transcript(17, 4, "2 + 2 = ?", "4", 1.0, {"number": 1.0}, ((3, 0, 2),), "stop", 2)
    """

    number: int
    row: int
    prompt: str
    answer: str
    reward: float | None
    parts: Mapping[str, float | None]
    versions: tuple[tuple[int, int, int], ...]
    finish: str
    length: int
    turns: tuple[Turn, ...] = ()
    extra: Mapping[str, object] = field(default_factory=dict)


class TranscriptWriter:
    """Appends transcripts to a file in `folder`. A resumed run first drops those past its checkpoint.

    Args: done: steps of the run so far. tensorboard: the folder of its event files, if they are wanted.
    """

    def __init__(self, folder: Path, *, done: int = 0, tensorboard: Path | None = None) -> None:
        self._path = folder / FILE
        folder.mkdir(parents=True, exist_ok=True)
        self.rewind(done)
        self._texts = None if tensorboard is None else _texts(tensorboard)

    def rewind(self, step: int) -> None:
        """Drop what was written of later steps."""
        kept = [line for line in _lines(self._path) if line["step"] <= step]
        temporary = self._path.with_name(f".{FILE}")
        temporary.write_text("".join(_line(line) for line in kept), encoding="utf-8")
        temporary.replace(self._path)

    def write(self, step: int, transcripts: Sequence[Transcript]) -> None:
        """Write the transcripts of one step."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(_line({"step": step, **_fields(one)}) for one in transcripts))
        if self._texts is not None:
            self._texts.write(step, "transcripts", "\n\n---\n\n".join(markdown(one) for one in transcripts))

    def finish(self) -> None:
        """Flush and close."""
        if self._texts is not None:
            self._texts.finish()


def _texts(folder: Path) -> "TensorBoardTexts":
    # Imported here: a run that does not ask for it should not pay its start-up.
    from raytune.monitors.tensorboard import TensorBoardTexts

    return TensorBoardTexts(folder)


def markdown(one: Transcript) -> str:
    """A transcript for TensorBoard; texts are indented, so that nothing in them is taken for markup."""
    parts = ", ".join(f"{name} {_number(score)}" for name, score in one.parts.items())
    weights = ", ".join(str(version) for version, _, _ in one.versions)
    head = f"**reward {_number(one.reward)}** ({parts}), prompt {one.number}, {one.length} tokens, {one.finish}"
    said = [f"**{who}**\n\n{_block(text)}" for who, text in one.turns or (("answer", one.answer),)]
    noted = [f"**{name}**\n\n{_block(str(value))}" for name, value in one.extra.items()]
    return "\n\n".join([f"{head}, weights {weights}", _block(one.prompt), *said, *noted])


def _block(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines()) or "    "


def _number(score: float | None) -> str:
    return "none" if score is None else f"{score:.4g}"


def _fields(one: Transcript) -> dict[str, Any]:
    return {
        "prompt_number": one.number,
        "row": one.row,
        "prompt": one.prompt,
        "answer": one.answer,
        **({"turns": [{"from": who, "text": text} for who, text in one.turns]} if one.turns else {}),
        "reward": one.reward if one.reward is None or math.isfinite(one.reward) else None,
        "parts": dict(one.parts),
        **({"extra": dict(one.extra)} if one.extra else {}),
        "versions": [list(span) for span in one.versions],
        "finish": one.finish,
        "length": one.length,
    }


def _line(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=False) + "\n"


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; one that a kill cut off is dropped."""
    if not path.is_file():
        return []
    whole = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in whole]
