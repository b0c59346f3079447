"""Our own data sets: registered, complete, and each row has what its format asks for."""

import json
import re
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[2] / "data"
INFO: dict[str, dict[str, Any]] = json.loads((DATA / "dataset_info.json").read_text())


def rows(name: str) -> list[dict[str, Any]]:
    text = (DATA / INFO[name]["file_name"]).read_text()
    return json.loads(text) if INFO[name]["file_name"].endswith(".json") else [json.loads(x) for x in text.splitlines()]


def test_every_data_file_is_registered() -> None:
    files = {path.name for path in DATA.glob("*.json*")} - {"dataset_info.json"}
    assert files == {entry["file_name"] for entry in INFO.values()}


def test_readme_counts_the_rows() -> None:
    table = [line.split("|") for line in (DATA / "README.md").read_text().splitlines() if line.startswith("| ")]
    counts = {cells[1].strip(): int(cells[4]) for cells in table if cells[4].strip().isdigit()}
    assert counts == {name: len(rows(name)) for name in INFO}


def test_alpaca_rows_have_a_question_and_an_answer() -> None:
    for name in ("identity", "alpaca_en_demo"):
        for row in rows(name):
            assert set(row) == {"instruction", "input", "output"}
            assert row["instruction"].strip()
            assert row["output"].strip()


def test_chats_alternate_and_end_with_the_assistant() -> None:
    chats = [[turn["from"] for turn in row["conversations"]] for row in rows("chat_demo")]
    assert all(chat == ["human", "gpt"] * (len(chat) // 2) for chat in chats)
    messages = [[turn["role"] for turn in row["messages"] if turn["role"] != "system"] for row in rows("messages_demo")]
    assert all(chat == ["user", "assistant"] * (len(chat) // 2) for chat in messages)


def test_identity_names_the_product() -> None:
    answers = [row["output"] for row in rows("identity")]
    assert sum("Raytune" in answer for answer in answers) > len(answers) / 2


def test_no_row_stands_twice() -> None:
    for name in INFO:
        texts = [json.dumps(row, sort_keys=True) for row in rows(name)]
        assert len(set(texts)) == len(texts)


def test_of_a_pair_of_sums_the_chosen_one_is_right() -> None:
    for name in ("addition_one_digit", "addition_one_digit_held_out"):
        solutions = {row["messages"][0]["content"]: row["solution"] for row in rows(name)}
        pairs = rows(name.replace("one_digit", "pairs"))
        assert {row["messages"][0]["content"] for row in pairs} == solutions.keys()
        for row in pairs:
            assert {message["role"] for message in (row["chosen"], row["rejected"])} == {"assistant"}
            last = [re.findall(r"\d+", row[side]["content"])[-1] for side in ("chosen", "rejected")]
            assert [number == solutions[row["messages"][0]["content"]] for number in last] == [True, False]


def test_every_sum_of_two_digits_is_asked_once_and_solved() -> None:
    found = {}
    for name in ("addition_one_digit", "addition_one_digit_held_out"):
        for row in rows(name):
            (message,) = row["messages"]
            first, second = (int(digit) for digit in re.findall(r"\d", message["content"]))
            assert message == {"role": "user", "content": f"What is {first} + {second}? Reply with the equation."}
            assert row["solution"] == str(first + second)
            assert found.setdefault((first, second), name) == name
    assert set(found) == {(first, second) for first in range(10) for second in range(10)}
    assert all(found[second, first] == name for (first, second), name in found.items())
