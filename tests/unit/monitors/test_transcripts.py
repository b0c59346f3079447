import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raytune.monitors.transcripts import Transcript, TranscriptWriter, markdown

ONE = Transcript(17, 4, "2 + 2?\n", "4", 1.0, {"number": 1.0, "short": None}, ((3, 0, 1), (4, 1, 2)), "stop", 2)
LOST = Transcript(18, 5, "q", "", None, {"number": None}, ((3, 0, 1),), "length", 1)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "transcripts.jsonl").read_text().splitlines()]


def test_each_answer_is_a_line(tmp_path: Path) -> None:
    writer = TranscriptWriter(tmp_path / "out")
    writer.write(3, [ONE, LOST])
    writer.finish()
    first, second = lines(tmp_path / "out")
    assert first == {
        "step": 3,
        "prompt_number": 17,
        "row": 4,
        "prompt": "2 + 2?\n",
        "answer": "4",
        "reward": 1.0,
        "parts": {"number": 1.0, "short": None},
        "versions": [[3, 0, 1], [4, 1, 2]],
        "finish": "stop",
        "length": 2,
    }
    assert (second["reward"], second["finish"]) == (None, "length")


def test_a_resumed_run_drops_what_lies_past_its_checkpoint(tmp_path: Path) -> None:
    writer = TranscriptWriter(tmp_path)
    for step in (1, 2, 3):
        writer.write(step, [ONE])
    with (tmp_path / "transcripts.jsonl").open("a") as file:
        file.write('{"step": 4, "pro')
    again = TranscriptWriter(tmp_path, done=2)
    again.write(3, [LOST])
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    assert [line["row"] for line in lines(tmp_path)] == [4, 4, 5]


def test_tensorboard_shows_them_as_text(tmp_path: Path) -> None:
    writer = TranscriptWriter(tmp_path, tensorboard=tmp_path / "runs")
    writer.write(3, [ONE, LOST])
    writer.finish()
    events = EventAccumulator(str(tmp_path / "runs"))
    events.Reload()
    tags: Any = events.Tags()["tensors"]
    (tag,) = tags
    (event,) = events.Tensors(tag)
    text = event.tensor_proto.string_val[0].decode()
    assert event.step == 3
    assert text == f"{markdown(ONE)}\n\n---\n\n{markdown(LOST)}"


def test_what_was_said_is_no_markup() -> None:
    shown = markdown(ONE)
    assert shown.startswith("**reward 1** (number 1, short none), prompt 17, 2 tokens, stop, weights 3, 4\n")
    assert "\n    2 + 2?\n" in shown
    assert shown.endswith("\n    4")


def test_what_functions_noted_is_shown(tmp_path: Path) -> None:
    noted = replace(ONE, extra={"parsed": "four", "tries": 2})
    assert markdown(noted).endswith("    4\n\n**parsed**\n\n    four\n\n**tries**\n\n    2")
    writer = TranscriptWriter(tmp_path)
    writer.write(1, [noted])
    assert lines(tmp_path)[0]["extra"] == {"parsed": "four", "tries": 2}


def test_turns_are_shown_one_by_one(tmp_path: Path) -> None:
    talk = replace(ONE, turns=(("policy", "<calc>2+2</calc>"), ("environment", "<result>4</result>"), ("policy", "4")))
    assert markdown(talk).endswith(
        "**policy**\n\n    <calc>2+2</calc>\n\n**environment**\n\n    <result>4</result>\n\n**policy**\n\n    4"
    )
    writer = TranscriptWriter(tmp_path)
    writer.write(1, [talk])
    assert lines(tmp_path)[0]["turns"][1] == {"from": "environment", "text": "<result>4</result>"}
