import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.figures import comparison_table, median, reduce
from benchmarks.task import Task, Tokens, write_rows
from benchmarks.watch import RunError, Step, Watched

TASK = Task(
    folder=Path("unused"), weights="float32", cutoff_len=8, micro_batch=2, accumulation=1, steps=4, warmup=2,
    learning_rate=1e-4, seed=1,
)  # fmt: skip
TOKENS = Tokens(lengths=[9, 9, 9, 9, 10, 20, 30, 40], trained=[1, 1, 1, 1, 5, 6, 7, 8])
# Steps 3 and 4 take 5 s together and 6 CPU seconds: 4 samples, 100 tokens, 26 of them trained.
WATCHED = Watched(
    steps=(Step(1, 4.0, 30.0, 31.0), Step(2, 2.0, 40.0, 42.0), Step(3, 1.5, 42.0, 45.0), Step(4, 0.5, 45.0, 48.0)),
    seconds=50.0, peak_tree=3 << 30, peak_process=2 << 30,
)  # fmt: skip


def test_rates_leave_the_warmup_out() -> None:
    figures = reduce(WATCHED, TASK, TOKENS, whole=0.5)

    assert figures.samples_per_second == pytest.approx(4 / 5)
    assert figures.tokens_per_second == pytest.approx(100 / 5)
    assert figures.trained_per_second == pytest.approx(26 / 5)
    assert figures.cpu_per_sample == pytest.approx(6 / 4)
    assert (figures.first_loss, figures.last_loss) == (3.0, 1.0)
    assert figures.first_step_seconds == 30.0


def test_a_run_that_missed_a_step_has_no_figures() -> None:
    with pytest.raises(RunError, match="steps 1 to 4"):
        reduce(replace(WATCHED, steps=WATCHED.steps[:3]), TASK, TOKENS, whole=0.5)


def test_the_table_holds_medians_and_their_ratio() -> None:
    theirs = reduce(WATCHED, TASK, TOKENS, whole=0.5)
    ours = [replace(theirs, samples_per_second=rate) for rate in (2.0, 100.0, 1.0)]

    table = comparison_table(median(ours), theirs)

    assert "| samples/s, after the warm-up | 2.00 | 0.80 | 2.50 |" in table
    assert "| peak memory, all processes (GiB) | 3.00 | 3.00 | 1.00 |" in table


def test_rows_are_drawn_from_both_sets_in_an_order_fixed_by_the_seed(tmp_path: Path) -> None:
    for name, word in (("identity.json", "a"), ("alpaca_en_demo.json", "b")):
        (tmp_path / name).write_text(json.dumps([{"instruction": f"{word}{i}"} for i in range(20)]))

    for folder, seed in (("one", 1), ("same", 1), ("other", 2)):
        write_rows(tmp_path, tmp_path / folder, 16, seed)
    one, same, other = (json.loads((tmp_path / f / "rows.json").read_text()) for f in ("one", "same", "other"))

    assert one == same != other
    assert len({row["instruction"] for row in one}) == 16
    assert {row["instruction"][0] for row in one} == {"a", "b"}
