"""Lost trainer ranks, over fakes whose weights are the list of what they learned: nothing is lost or doubled."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from raytune.config.output import OutputConfig
from raytune.engine.checkpoint import CheckpointStore
from raytune.errors import PolicyLostError, TrainError
from raytune.rewards.table import RewardTable
from raytune.stages.experience import group_experience
from raytune.stages.interfaces import PolicyResult, PolicySample, TokenNumbers
from raytune.stages.prompts import PromptSource
from raytune.stages.recovery import Recovery, Versions
from raytune.stages.reinforce import ReinforceLoop, ReinforcePlan
from raytune.stages.samples import Prompt, Sampling, ScoredGroup
from raytune.stages.state import TrainState
from tests.unit.stages.test_reinforce import RULE, Log, prompts

Learned = list[tuple[str, ...]]


class Cluster:
    """Ranks that forget and replicas that do not. An answer is named by its prompt and the weights that drew it.

    Args: deaths: calls (update, publish, save, rebuild; counted from 1) at which a rank dies.
    """

    def __init__(self, folder: Path, *, deaths: Sequence[tuple[str, int]] = (), late: bool = False) -> None:
        self.folder, self.deaths, self.late = folder, set(deaths), late
        self.calls: dict[str, int] = {}
        self.weights: Learned = []
        self.served: tuple[int, Learned] = (-1, [])
        self.versions: list[int] = []
        self.queue: list[tuple[Prompt, int, Learned]] = []
        self.drawn: dict[tuple[int, int], Learned] = {}
        self.used: list[tuple[int, int, int]] = []
        self.rebuilt: list[str | None] = []

    def call(self, what: str) -> None:
        self.calls[what] = self.calls.get(what, 0) + 1
        if (what, self.calls[what]) in self.deaths:
            self.weights = [("lost",)]
            raise PolicyLostError(f"rank 0 stopped during '{what}'", fix="Run it again.")

    def submit(self, prompts: Sequence[Prompt], sampling: Sampling, group_size: int) -> None:
        # Where ranks and replicas take turns, the ranks hand over before anything is drawn.
        self.call("submit")
        self.queue += [(prompt, *self.served) for prompt in prompts]

    def wait(self, timeout: float) -> list[ScoredGroup]:
        prompt, version, weights = self.queue.pop(-1 if self.late else 0)
        table = RewardTable(("right",), (1.0,), ((1.0, 0.0),))
        self.drawn[prompt.number, version] = weights
        payload = (prompt.number, version)
        return [
            ScoredGroup(
                *(prompt.number, prompt.row, table, (1.0, 0.0), (3, 4), 2, (version, version), ("stop", "stop")),
                payload=payload,
                rollout_seconds=2.0,
                reward_seconds=0.1,
            )
        ]

    def pending(self) -> int:
        return len(self.queue)

    def publish(self, version: int) -> Mapping[str, float]:
        self.versions.append(version)
        self.call("publish")
        self.served = (version, list(self.weights))
        return {}

    def update(self, step: int, samples: Sequence[PolicySample]) -> PolicyResult:
        self.call("update")
        names = sorted({sample.payload for sample in samples})
        self.used += [(number, version, len(self.weights)) for number, version in names]
        self.weights = [*self.weights, tuple(f"{n} by {len(self.drawn[n, v])}" for n, v in names)]
        return PolicyResult(0.5, 20, 0.3, 1e-4, {})

    def values(self, samples: Sequence[PolicySample]) -> list[TokenNumbers]:
        raise AssertionError("grpo does not ask for token numbers")

    def save(self, folder: Path, *, with_state: bool) -> None:
        self.call("save")
        (folder / "weights.json").write_text(json.dumps(self.weights))

    def rebuild(self, checkpoint: Path | None) -> None:
        self.rebuilt.append(checkpoint.name if checkpoint else None)
        self.call("rebuild")
        saved = [] if checkpoint is None else json.loads((checkpoint / "weights.json").read_text())
        self.weights = [tuple(step) for step in saved]


def run(cluster: Cluster, *, staleness: int = 0, save_steps: int = 1, steps: int = 5, **output: object) -> Log:
    log, state = Log(), TrainState()
    store = prompts(cluster.folder / "prompts", 64)
    (cluster.folder / "out").mkdir(exist_ok=True)

    def rebuild(checkpoint: Path | None) -> None:
        log.rewind(state.step, state.log_history)
        cluster.rebuild(checkpoint)

    loop = ReinforceLoop(
        ReinforcePlan(steps, 2, 2, len(store), Sampling(), max_staleness=staleness),
        OutputConfig.model_validate({"save_steps": save_steps, "logging_steps": 1, **output}),
        source=PromptSource(store, seed=1, shuffle=False),
        rollouts=cluster,
        policy=cluster,
        weights=cluster,
        experience=lambda groups: group_experience(groups, RULE),
        keeps=lambda group: True,
        transcribe=lambda step, groups: None,
        monitor=log,
        checkpoints=CheckpointStore(cluster.folder / "out"),
        state=state,
        interrupted=lambda: False,
        recovery=Recovery(rebuild, most=2),
    )
    assert loop.run()
    assert state.step == steps
    assert [entry["current_steps"] for entry in log.entries] == list(range(1, steps + 1))
    return log


def undisturbed(steps: int = 5) -> Learned:
    """Without staleness: two prompts a step, drawn by weights that have learned all steps before."""
    return [(f"{2 * step} by {step}", f"{2 * step + 1} by {step}") for step in range(steps)]


OCCASIONS = [("update", 1), ("update", 4), ("publish", 1), ("publish", 4), ("save", 1), ("save", 3)]
PLACES = [*OCCASIONS, ("submit", 1), ("submit", 3)]


@pytest.mark.parametrize("save_steps", [1, 2, 100])
@pytest.mark.parametrize("place", PLACES, ids=[f"{what}-{count}" for what, count in PLACES])
def test_without_staleness_a_lost_rank_changes_nothing(tmp_path: Path, place: tuple[str, int], save_steps: int) -> None:
    cluster = Cluster(tmp_path, deaths=[place])
    run(cluster, save_steps=save_steps)
    assert cluster.weights == undisturbed()
    assert len(cluster.rebuilt) == (0 if place[0] == "save" and place[1] > 1 and save_steps == 100 else 1)
    assert len(set(cluster.versions)) == len(cluster.versions)


def test_it_goes_on_from_the_last_checkpoint_and_scored_groups_are_learned_from(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, deaths=[("update", 4)])
    run(cluster)
    assert cluster.rebuilt == ["checkpoint-3"]
    assert len(cluster.drawn) == 10  # two a step: the groups of the step that failed were kept
    assert cluster.versions == [0, 1, 2, 3, 4, 5, 6]  # 4 is step 3 again


def test_without_a_checkpoint_it_begins_anew(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, deaths=[("update", 4)])
    run(cluster, save_strategy="no")
    assert cluster.rebuilt == [None]
    assert cluster.weights == undisturbed()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("save_steps", [1, 3])
@pytest.mark.parametrize("place", PLACES, ids=[f"{what}-{count}" for what, count in PLACES])
def test_with_staleness_no_prompt_is_lost_and_no_answer_too_far(
    tmp_path: Path, place: tuple[str, int], save_steps: int, late: bool
) -> None:
    cluster = Cluster(tmp_path, deaths=[place], late=late)
    log = run(cluster, staleness=1, save_steps=save_steps, steps=7)
    learned = sorted(int(name.split()[0]) for step in cluster.weights for name in step)
    assert learned == list(range(14))
    drawn_by = [(step, int(name.split()[-1])) for step, names in enumerate(cluster.weights) for name in names]
    assert all(abs(step - by) <= 1 for step, by in drawn_by)
    assert all(-1 <= entry["staleness"] <= 1 for entry in log.entries)


def test_ranks_that_die_while_they_are_rebuilt_are_rebuilt_once_more(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, deaths=[("update", 2), ("rebuild", 1)])
    run(cluster)
    assert cluster.rebuilt == ["checkpoint-1", "checkpoint-1"]
    assert cluster.weights == undisturbed()


def test_losses_that_follow_progress_are_forgiven(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, deaths=[("update", count) for count in (1, 3, 5, 7, 9)])
    run(cluster)
    assert cluster.weights == undisturbed()


def test_too_many_losses_in_a_row_end_the_run(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, deaths=[("update", count) for count in (2, 3, 4)])
    with pytest.raises(TrainError, match=r"lost 3 times in a row after step 1, .*during 'update'.* Run it again"):
        run(cluster)
    assert cluster.rebuilt == ["checkpoint-1", "checkpoint-1"]


def test_checkpoints_of_weights_alone_are_nothing_to_go_on_from(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, deaths=[("update", 4)])
    run(cluster, save_only_model=True)
    assert cluster.rebuilt == [None]
    assert cluster.weights == undisturbed()


def test_a_version_is_given_once_and_stands_for_its_step() -> None:
    versions = Versions()
    assert [versions.give(step) for step in (3, 4, 5)] == [3, 4, 5]
    versions.go_back()
    assert [versions.give(step) for step in (4, 5)] == [6, 7]
    assert [versions.step_of(version) for version in (3, 4, 5, 6, 7)] == [3, 4, 5, 4, 5]
    assert [versions.is_current(version) for version in (5, 6)] == [False, True]
