from raytune.monitors.console import ConsoleMonitor, describe

ENTRY = {
    "current_steps": 3,
    "total_steps": 10,
    "loss": 1.25,
    "lr": 0.0002,
    "grad_norm": 0.5,
    "throughput": 1234.4,
    "epoch": 0.3,
    "remaining_time": 3725.9,
}


def test_a_line_has_what_a_person_looks_at():
    assert describe(ENTRY) == "loss 1.2500  lr 2.00e-04  grad_norm 0.50  1234 tokens/s  epoch 0.30  1:02:05 left"


def test_an_evaluation_shows_its_metrics_and_not_its_time():
    entry = {"eval_loss": 2.0, "eval_accuracy": 0.25, "eval_runtime": 9.0, "epoch": 1.0, "total_steps": 4}
    assert describe(entry) == "eval_loss 2.0000  eval_accuracy 0.2500"


def test_without_a_terminal_entries_are_plain_lines_on_stderr(capsys):
    monitor = ConsoleMonitor(total_steps=10)
    monitor.log(3, ENTRY)
    monitor.finish()
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("step 3/10  loss 1.2500")
    assert len(said.err.splitlines()) == 1
    assert "\x1b" not in said.err


def test_reinforcement_learning_shows_its_reward_first():
    entry = {**ENTRY, "reward": 0.51249, "kl": 0.00125, "entropy": 1.5, "completion_length": 12.25, "cut_share": 0.5}
    assert describe(entry).startswith("reward 0.512  kl 0.0013  entropy 1.500  length 12.2  loss 1.2500")
