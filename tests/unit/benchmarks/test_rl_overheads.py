from pathlib import Path

from benchmarks.recovery import Load, Outage, report
from benchmarks.rl_overheads import Instant, fake_loop
from raytune.stages.policy_plan import Cut


def test_the_fake_loop_does_every_step_over_all_groups(tmp_path: Path) -> None:
    ended: list[int] = []
    world = Instant(Cut(num_ranks=2, max_tokens=4096), answers=4)
    loop = fake_loop(
        tmp_path, rollouts=world, policy=world, steps=3, prompts=5, answers=4, staleness=1,
        after=lambda: ended.append(loop.state.step),
    )  # fmt: skip

    assert loop.run()
    loop.monitor.finish()

    assert ended == [1, 2, 3]
    assert loop.state.num_rows == 15
    assert [entry["staleness"] for entry in loop.state.log_history] == [0.0, 1.0, 1.0]


def test_outages_are_told_by_their_medians() -> None:
    outages = [Outage("core killed", *times) for times in ((1.0, 20.0), (3.0, 90.0), (2.0, 31.0))]

    told = report(outages, [20.0, 30.0], Load(None, groups=1, tokens=1, finished=7))

    assert "engine load 25.0 s; 7 groups answered, none lost" in told
    assert "| core killed | 2.0 | 31.0 | +6.0 |" in told
