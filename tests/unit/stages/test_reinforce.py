"""The loop of ppo and grpo over hand-written fakes: who is asked for what, in which order, and how far ahead."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raytune.config.evaluation import EvalConfig
from raytune.config.output import OutputConfig
from raytune.data.store import Manifest, RowStore, to_table, write_block, write_manifest
from raytune.engine.checkpoint import CheckpointStore
from raytune.errors import TrainError
from raytune.losses.estimate import EstimatorRule
from raytune.monitors.base import Entry
from raytune.rewards.table import RewardTable, unscorable
from raytune.stages.experience import group_experience, teaches
from raytune.stages.interfaces import PolicyResult, PolicySample, TokenNumbers
from raytune.stages.prompts import HELD_OUT, PromptCursor, PromptSource, held_out_prompts
from raytune.stages.recovery import Recovery
from raytune.stages.reinforce import ReinforceLoop, ReinforcePlan
from raytune.stages.samples import Prompt, Sampling, ScoredGroup
from raytune.stages.state import TrainState, load_state
from raytune.stages.validation import Validation
from raytune.types import Encoded

RULE = EstimatorRule("group")


class World:
    """Rollouts, weights and policy in one, so that the order of what happens is one list."""

    def __init__(
        self,
        *,
        rewards: Mapping[int, tuple[float, ...]] | None = None,
        slow: frozenset[int] = frozenset(),
        newest_first: bool = True,
    ):
        self.events: list[str] = []
        self.version = -1
        self.queue: list[tuple[Prompt, int]] = []
        self.learned: list[list[int]] = []
        self.samples: list[PolicySample] = []
        self.rewards = rewards or {}
        self.slow = slow
        self.newest_first = newest_first

    def submit(self, prompts: Sequence[Prompt], sampling: Sampling, group_size: int) -> None:
        self.events.append(f"submit {[prompt.number for prompt in prompts]}")
        self.queue += [(prompt, self.version) for prompt in prompts]

    def wait(self, timeout: float) -> list[ScoredGroup]:
        fast = [place for place, (prompt, _) in enumerate(self.queue) if prompt.number not in self.slow]
        prompt, version = self.queue.pop((fast or [0])[-1 if self.newest_first else 0])
        return [self.group(prompt, version)]

    def pending(self) -> int:
        return len(self.queue)

    def group(self, prompt: Prompt, version: int) -> ScoredGroup:
        rewards = self.rewards.get(prompt.number, (1.0, 0.0))
        table = RewardTable(("right",), (1.0,), (rewards,))
        return ScoredGroup(
            prompt.number,
            prompt.row,
            table,
            rewards,
            (3, 4),
            len(prompt.ids),
            (version, version),
            ("stop", "length"),
            payload=prompt.number,
            rollout_seconds=2.0,
            reward_seconds=0.1,
        )

    def publish(self, version: int) -> Mapping[str, float]:
        self.events.append(f"publish {version}")
        self.version = version
        return {"transfer": 0.1}

    def update(self, step: int, samples: Sequence[PolicySample]) -> PolicyResult:
        self.learned.append([sample.payload for sample in samples])
        self.samples += samples
        self.events.append(f"update {step}")
        return PolicyResult(0.5, 20, 0.3, 1e-4, {"entropy": 1.5})

    def rebuild(self, checkpoint: Path | None) -> None:
        raise AssertionError("no rank is lost here")

    def values(self, samples: Sequence[PolicySample]) -> list[TokenNumbers]:
        raise AssertionError("grpo does not ask for token numbers")

    def save(self, folder: Path, *, with_state: bool) -> None:
        (folder / "weights").write_text(str(self.version))


class Log:
    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def log(self, step: int, entry: Entry) -> None:
        self.entries.append(entry)

    def advance(self, step: int) -> None: ...

    def rewind(self, step: int, history: Sequence[Entry]) -> None:
        self.entries = list(history)

    def finish(self) -> None: ...


def prompts(folder: Path, count: int) -> RowStore:
    if not folder.exists():
        folder.mkdir()
        rows = [Encoded([row + 1, row + 2], [-100, -100]) for row in range(count)]
        write_manifest(folder, Manifest("key", (write_block(folder, 0, to_table(rows)),)))
    return RowStore.open(folder)


def loop(
    tmp_path: Path,
    world: World,
    *,
    steps: int = 3,
    staleness: int = 0,
    limit: int | None = None,
    state: TrainState | None = None,
    stop_at: int | None = None,
    filters: bool = False,
    evaluation: EvalConfig | None = None,
    output: OutputConfig | None = None,
) -> tuple[ReinforceLoop, Log]:
    state, log = state or TrainState(), Log()
    store = prompts(tmp_path / "prompts", 64)
    number, again = state.prompts
    (tmp_path / "out").mkdir(exist_ok=True)
    made = ReinforceLoop(
        ReinforcePlan(steps, 2, 2, len(store), Sampling(), max_staleness=staleness, max_rounds=3),
        output or OutputConfig(save_steps=1, logging_steps=1),
        source=PromptSource(store, seed=1, limit=limit, shuffle=False, cursor=PromptCursor(number, again)),
        rollouts=world,
        policy=world,
        weights=world,
        experience=lambda groups: group_experience(groups, RULE),
        keeps=teaches if filters else (lambda group: True),
        transcribe=lambda step, groups: None,
        monitor=log,
        checkpoints=CheckpointStore(tmp_path / "out"),
        state=state,
        interrupted=lambda: stop_at is not None and state.step >= stop_at,
        recovery=Recovery(world.rebuild),
        validation=None if evaluation is None else held_out(store, world, evaluation),
    )
    return made, log


def held_out(store: RowStore, world: World, evaluation: EvalConfig) -> Validation:
    return Validation(evaluation, world, held_out_prompts(store, limit=2), Sampling(), 2, every=2, timeout=1.0)


def test_without_staleness_drawing_and_learning_take_turns(tmp_path: Path) -> None:
    world = World()
    made, _ = loop(tmp_path, world)
    assert made.run()
    expected = ["publish 0"]
    for step in (1, 2, 3):
        expected += [f"submit [{2 * step - 2}, {2 * step - 1}]", f"update {step}", f"publish {step}"]
    assert world.events == expected
    assert world.learned == [[0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5]]  # by number, though 1 finished before 0


def test_staleness_draws_as_many_steps_ahead_and_no_further(tmp_path: Path) -> None:
    world = World(newest_first=False)
    made, log = loop(tmp_path, world, steps=3, staleness=1)
    assert made.run()
    assert world.events[:4] == ["publish 0", "submit [0, 1, 2, 3]", "update 1", "publish 1"]
    # The last step's prompts are drawn while the second one is learned from, and nothing beyond the end.
    assert [event for event in world.events if event.startswith("submit")] == ["submit [0, 1, 2, 3]", "submit [4, 5]"]
    assert sorted(number for step in world.learned for number in step) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert max(entry["staleness"] for entry in log.entries) == 1.0


def test_an_answer_that_is_too_old_is_drawn_again(tmp_path: Path) -> None:
    world = World(slow=frozenset({0}))
    made, log = loop(tmp_path, world, steps=4, staleness=1)
    assert made.run()
    learned = [number for step in world.learned for number in step]
    assert learned.count(0) == 2  # once, as a group of two, and from weights that were new enough
    assert sum(entry.get("groups_too_old", 0) for entry in log.entries) >= 1
    assert max(entry["staleness"] for entry in log.entries) <= 1.0


def test_groups_rewarded_alike_are_replaced_by_others(tmp_path: Path) -> None:
    world = World(rewards={0: (1.0, 1.0), 1: (0.0, 0.0)})
    made, log = loop(tmp_path, world, steps=1, filters=True)
    assert made.run()
    assert world.learned == [[2, 2, 3, 3]]
    assert log.entries[0]["groups_filtered"] == 2


def test_filtering_gives_up_after_its_rounds(tmp_path: Path) -> None:
    world = World(rewards=dict.fromkeys(range(64), (0.0, 0.0)))
    made, _ = loop(tmp_path, world, steps=1, filters=True)
    assert made.run()
    assert len(world.learned) == 1
    assert [sample.advantage for sample in world.samples] == [0.0] * 4


def test_prompts_that_run_out_end_the_run_and_the_rest_is_learned_from(tmp_path: Path) -> None:
    world = World()
    made, _ = loop(tmp_path, world, steps=9, limit=3)
    assert made.run()
    assert world.learned == [[0, 0, 1, 1], [2, 2]]
    assert CheckpointStore(tmp_path / "out").steps() == [1, 2]


def test_a_step_that_nothing_could_be_scored_of_says_why(tmp_path: Path) -> None:
    class Unscored(World):
        def group(self, prompt: Prompt, version: int) -> ScoredGroup:
            table = unscorable({"judge": 1.0}, 2, "the server is down")
            return replace(super().group(prompt, version), table=table, rewards=table.combined)

    made, _ = loop(tmp_path, Unscored())
    with pytest.raises(TrainError, match=r"update 1 has no answer .* \(judge: the server is down\)"):
        made.run()


def test_unscorable_answers_are_neither_learned_from_nor_in_the_baseline(tmp_path: Path) -> None:
    world = World(rewards={0: (1.0, float("nan"))})
    made, log = loop(tmp_path, world, steps=1)
    assert made.run()
    assert [(sample.payload, sample.place) for sample in world.samples] == [(0, 0), (1, 0), (1, 1)]
    assert world.samples[0].advantage == 0.0
    assert world.samples[1].advantage == pytest.approx(0.5 / (np.std([1, 0], ddof=1) + 1e-6))
    assert (log.entries[0]["unscorable"], log.entries[0]["reward"]) == (1.0, pytest.approx(2 / 3))


@pytest.mark.parametrize("staleness", [0, 1])
def test_an_interrupted_run_goes_on_with_the_prompts_it_had_not_learned_from(tmp_path: Path, staleness: int) -> None:
    first = World()
    made, _ = loop(tmp_path, first, steps=4, staleness=staleness, stop_at=2)
    assert not made.run()
    state = load_state(tmp_path / "out" / "checkpoint-2")
    second = World()
    made, _ = loop(tmp_path, second, steps=4, staleness=staleness, state=state)
    assert made.run()
    learned = [number for step in (*first.learned, *second.learned) for number in step]
    assert sorted(learned) == sorted([*range(8), *range(8)])
    if staleness == 0:
        whole = World()
        made, _ = loop(tmp_path, whole, steps=4)
        assert made.run()
        assert [*first.learned, *second.learned] == whole.learned


def test_a_resume_with_no_step_left_says_so_and_touches_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("raytune"), "propagate", True)
    caplog.set_level("INFO", "raytune")
    world = World()
    made, _ = loop(tmp_path, world, steps=2)
    assert made.run()
    again = World()
    made, _ = loop(tmp_path, again, steps=2, state=load_state(tmp_path / "out" / "checkpoint-2"))
    assert made.run()
    assert "the run is complete at step 2; writing its result" in caplog.text
    assert again.events == []


def test_a_resume_after_the_last_step_makes_up_for_the_validation_that_was_missed(tmp_path: Path) -> None:
    made, _ = loop(tmp_path, World(), steps=2)
    assert made.run()
    for missed, asked in ((True, 1), (False, 0)):
        state = load_state(tmp_path / "out" / "checkpoint-2") if missed else made.state
        again = World()
        made, log = loop(tmp_path, again, steps=2, state=state, evaluation=EvalConfig())
        assert made.run()
        assert [event.startswith("submit") for event in again.events].count(True) == asked
        assert [step for step, _ in evaluated(log)] == [2] * asked
        assert again.learned == []


def evaluated(log: Log) -> list[tuple[float, float]]:
    return [(entry["current_steps"], entry["eval_reward"]) for entry in log.entries if "eval_reward" in entry]


def test_held_out_prompts_are_asked_when_they_are_due(tmp_path: Path) -> None:
    world = World(rewards={HELD_OUT: (1.0, 1.0)})
    made, log = loop(tmp_path, world, steps=3, evaluation=EvalConfig(eval_strategy="steps", eval_on_start=True))
    assert made.run()
    assert evaluated(log) == [(0, 0.75), (2, 0.75), (3, 0.75)]  # before, every second step, and the end
    assert world.learned == [[0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5]]
    held = f"submit [{HELD_OUT}, {HELD_OUT + 1}]"
    assert [event for event in world.events if event in (held, "update 1", "publish 2")] == [
        held, "update 1", "publish 2", held, held,
    ]  # fmt: skip


def test_prompts_that_are_drawn_ahead_are_not_lost_to_a_validation(tmp_path: Path) -> None:
    world = World(newest_first=False)
    made, log = loop(tmp_path, world, steps=4, staleness=1, evaluation=EvalConfig(eval_strategy="steps"))
    assert made.run()
    assert sorted(number for step in world.learned for number in step) == sorted([*range(8), *range(8)])
    assert [step for step, _ in evaluated(log)] == [2, 4]


def test_the_best_validation_is_kept_and_ends_a_run_that_stands_still(tmp_path: Path) -> None:
    class Peak(World):
        """Best at version 2."""

        def group(self, prompt: Prompt, version: int) -> ScoredGroup:
            self.rewards = {HELD_OUT: (1.0, 1.0) if version == 2 else (0.0, 0.0)}
            return super().group(prompt, version)

    evaluation = EvalConfig(eval_strategy="steps", load_best_model_at_end=True, early_stopping_steps=2)
    output = OutputConfig(save_steps=2, save_total_limit=1)
    made, _ = loop(tmp_path, Peak(), steps=20, evaluation=evaluation, output=output)
    assert made.run()
    assert (made.state.best_step, made.state.best_metric, made.state.step) == (2, 0.75, 6)
    assert CheckpointStore(tmp_path / "out").steps() == [2, 6]


def test_a_line_of_the_log_says_where_the_time_went(tmp_path: Path) -> None:
    made, log = loop(tmp_path, World(), steps=1)
    assert made.run()
    (entry,) = log.entries
    parts = [entry[f"time_{part}"] for part in ("rollout", "experience", "train", "sync")]
    assert entry["time_step"] == pytest.approx(sum(parts), abs=3e-4)
    assert (entry["time_reward"], entry["time_group"]) == (0.2, 2.0)  # two groups of 0.1 s, each drawn in 2 s
    assert (entry["completion_length"], entry["completion_length_min"], entry["completion_length_max"]) == (3.5, 3, 4)
    assert (entry["groups_filtered"], entry["groups_too_old"], entry["clip_fraction"]) == (0, 0, 0)
    assert {"reward_right", "entropy", "tokens_per_second", "rollout_tokens_per_second"} <= set(entry)
