"""The one place that builds a run and connects its parts.

config -> output folder -> cluster -> plan -> placement group -> trainer group + prepared data -> loop -> result
"""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from actors.autoscaling import adds_nodes
from actors.cluster import connected, is_in_jobs_copy
from actors.data import prepare_data
from actors.group import TrainerGroup
from actors.placement import NodeShape, Plan, make_plan, share_of_cpus
from actors.scheduler import nodes, release, reserve
from raytune.config.checks.reinforcement import learns_from_answers
from raytune.config.load import Resolved, dump
from raytune.config.paths import absolute_paths, is_shared
from raytune.config.rules import check_built, check_verb
from raytune.config.run import RunConfig
from raytune.data.inputs import cache_root
from raytune.data.sources import find_files, find_specs
from raytune.data.template import check_vocabulary, read_template
from raytune.engine.checkpoint import CheckpointStore, write_json
from raytune.engine.disk import writes_to
from raytune.engine.identity import identity_of
from raytune.engine.output import Decision, claim_output, decide_start, publish_weights, write_results
from raytune.errors import TrainError
from raytune.log import configure, get_logger
from raytune.models.embedded import resolve_model_path
from raytune.models.folder import adapter_path, check_config, check_weights, reward_folder
from raytune.monitors.base import Entry
from raytune.monitors.build import build_monitors
from raytune.monitors.model_card import write_model_card
from raytune.monitors.plot import plot_loss, plot_reward
from raytune.stages.loop import Loop, LoopPlan
from raytune.stages.schedule import plan_loop
from raytune.stages.state import TrainState, load_state

log = get_logger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds in which a second signal is an echo of the first: `timeout` sends one to the process and one to its group.
_ECHO = 1.0


@dataclass(frozen=True, slots=True)
class Summary:
    """What a finished run says of itself. `interrupted` runs have saved and can be gone on with."""

    folder: Path
    interrupted: bool
    results: dict[str, Entry]


def train(resolved: Resolved) -> Summary:
    """Run the stage of a config to its end. Raises a RaytuneError for anything a user can mend."""
    check_built(resolved.config, "train")
    check_verb(resolved.config, "train")
    cfg = absolute_paths(resolved.config)
    if cfg.output.log_level != "passive":
        configure(level=cfg.output.log_level)
    folder = Path(str(cfg.output.output_dir))
    if is_in_jobs_copy(folder):
        log.warning(
            "output_dir %s lies in Ray's copy of the submitted folder, which goes with the job: set storage_path or an "
            "absolute output_dir to keep the result",
            folder,
        )
    check_inputs(cfg)
    if learns_from_answers(cfg):
        from raytune import launch_rl

        launch_rl.check(cfg)
    decision = decide_start(
        folder,
        identity_of(cfg),
        overwrite=cfg.output.overwrite_output_dir,
        resume=cfg.output.resume_from_checkpoint,
    )
    if decision.message:
        log.info(decision.message)
    try:
        with _listening() as interruption, connected(cfg.cluster, cpus=plan_of(cfg, ()).cpus):
            run = _run_answers if learns_from_answers(cfg) else _run
            return run(cfg, folder, decision, interruption)
    except KeyboardInterrupt:
        raise _stopped(folder) from None


def _stopped(folder: Path) -> TrainError:
    """The end of a run by Ctrl-C before its first step, or by a second Ctrl-C."""
    steps = CheckpointStore(folder).steps()
    fix = f"The same command goes on from checkpoint-{steps[-1]}." if steps else "The same command starts it anew."
    return TrainError("interrupted without saving", where=str(folder), fix=fix)


def check_inputs(cfg: RunConfig) -> None:
    """Fail before a cluster starts: model, adapters and data are there. Makes or downloads the model, once for all."""
    if cfg.data.tokenized_path is None:
        for spec in find_specs((*cfg.data.dataset, *cfg.data.eval_dataset), cfg.data.dataset_dir):
            find_files(spec)
    template = cfg.template.template
    spells = None if template in (None, "auto") else read_template(str(template))
    for name in cfg.adapter.adapter_name_or_path:
        adapter_path(name, cfg.adapter.adapter_folder)
    reward = cfg.reward
    if learns_from_answers(cfg) and reward.reward_model is not None and reward.reward_model_type != "api":
        reward_folder(reward.reward_model, reward.reward_model_type, reward.reward_model_adapters)
    model = cfg.model
    folder = resolve_model_path(
        model.model_name_or_path,
        revision=model.model_revision,
        cache_dir=model.cache_dir,
        token=model.hf_hub_token,
        weights=not model.train_from_scratch,
    )
    check_config(folder)
    if not model.train_from_scratch:
        check_weights(folder)
    if spells is not None and not (model.add_tokens or model.add_special_tokens):
        check_vocabulary(spells, Path(folder))


def plan_of(cfg: RunConfig, shapes: Sequence[NodeShape], *, grows: bool = False) -> Plan:
    """The bundles of a run on nodes of these shapes; GPUs are taken where there are any, unless `use_cpu`.

    Without nodes: what the run needs at least. Args: grows: an autoscaler may add nodes.
    """
    cluster = cfg.cluster
    gpus = cluster.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if any(shape.gpus for shape in shapes) else 0.0
    if cluster.use_cpu:
        gpus = 0.0
    if learns_from_answers(cfg):
        from raytune.launch_rl.bundles import plan_answers

        return plan_answers(cfg, shapes, run=_run_name(cfg), gpus=gpus, grows=grows)
    share = share_of_cpus(shapes, num_ranks=cluster.num_workers, gpus_per_rank=gpus)
    return make_plan(
        _run_name(cfg),
        num_ranks=cluster.num_workers,
        cpus_per_rank=cluster.cpus_per_worker or share,
        gpus_per_rank=gpus,
        priority=cluster.priority,
    )


def _run_answers(cfg: RunConfig, folder: Path, decision: Decision, interruption: "_Interruption") -> Summary:
    """A run that learns from its own answers, from the reservation to its result."""
    from raytune import launch_rl

    shapes = nodes()
    plan = plan_of(cfg, shapes, grows=adds_nodes())
    launch_rl.check_room(cfg, plan, shapes)
    if plan.note is not None:
        log.info("%s", plan.note)
    reservation = reserve(plan, timeout=cfg.cluster.placement_timeout)
    state = load_state(decision.checkpoint) if decision.checkpoint else TrainState()

    @contextmanager
    def claim() -> Iterator[None]:
        with claim_output(folder, identity_of(cfg), decision), writes_to(folder):
            write_json(folder / "resolved_config.json", dump(cfg))
            yield

    try:
        ends = launch_rl.Ends(
            claim=claim,
            publish=lambda group, checkpoints: _publish(cfg, folder, group, checkpoints, state),
            interrupted=lambda: interruption.caught,
            save_from_now_on=interruption.save_from_now_on,
        )
        shared = _all_nodes_see(cfg, folder, decision)
        finished = launch_rl.run(
            cfg, folder, plan, reservation, state=state, checkpoint=decision.checkpoint, shared=shared, ends=ends
        )
    finally:
        release(reservation)
    if not finished:
        return Summary(folder, True, {})
    results = _results(state, epoch=state.log_history[-1]["epoch"] if state.log_history else 0.0)
    write_results(folder, results)
    state.save(folder)
    if cfg.output.plot_loss:
        plot_reward(state.log_history, folder / "training_reward.png")
    _card(cfg, folder, results)
    return Summary(folder, False, results)


def _run(cfg: RunConfig, folder: Path, decision: Decision, interruption: "_Interruption") -> Summary:
    started = time.monotonic()
    plan = plan_of(cfg, nodes())
    reservation = reserve(plan, timeout=cfg.cluster.placement_timeout)
    group: TrainerGroup | None = None
    try:
        # Ranks load the model while the data workers tokenise.
        group = TrainerGroup(cfg, plan, reservation, shared=_all_nodes_see(cfg, folder, decision))
        building = group.build(decision.checkpoint)
        data = prepare_data(cfg)
        state = load_state(decision.checkpoint) if decision.checkpoint else TrainState()
        _check_same_rows(state, data.key)
        loop_plan = plan_loop(cfg, data, state)
        facts = group.start(building, data, loop_plan.total_steps)
        group.relay_log()
        log.info(
            "%s: %s rows, %s a step, %s steps; %s of %s parameters train; %s on %s%s",
            cfg.train.stage,
            loop_plan.num_rows,
            loop_plan.batch_rows,
            loop_plan.total_steps,
            f"{facts.num_trainable:,}",
            f"{facts.num_parameters:,}",
            f"{facts.engine} x {cfg.cluster.num_workers}",
            facts.device,
            ", recomputing activations" if facts.checkpointing else "",
        )
        log.info("ready after %.1f s", time.monotonic() - started)
        with claim_output(folder, identity_of(cfg), decision), writes_to(folder):
            write_json(folder / "resolved_config.json", dump(cfg))
            return _train(cfg, folder, group, loop_plan, state, interruption)
    finally:
        if group is not None:
            group.shutdown()
        release(reservation)


def _all_nodes_see(cfg: RunConfig, folder: Path, decision: Decision) -> bool:
    """Whether ranks on other nodes can use the run's files where they lie; else the files travel."""
    return is_shared(cfg, folder, cache_root(cfg), *([decision.checkpoint] if decision.checkpoint else []))


def _check_same_rows(state: TrainState, key: str) -> None:
    if state.data_key not in (None, key):
        log.warning(
            "the training rows are prepared differently than before the interruption (data, template, cutoff_len, "
            "or a newer raytune): the data position may not point at the same rows"
        )
    state.data_key = key


def _train(
    cfg: RunConfig,
    folder: Path,
    group: TrainerGroup,
    plan: LoopPlan,
    state: TrainState,
    interruption: "_Interruption",
) -> Summary:
    checkpoints = CheckpointStore(folder)
    if dropped := checkpoints.drop_after(state.step):
        log.info("removed the checkpoints of later steps: %s", ", ".join(map(str, dropped)))
    if state.best_step is not None and state.best_step not in checkpoints.steps():
        # The run comes from another folder: what was best there is not here to be published.
        state.best_step = state.best_metric = None
    if state.step >= plan.total_steps:
        log.info("the run is complete at step %s; writing its result", state.step)
    monitors = build_monitors(
        cfg.output, folder, history=state.log_history, total_steps=plan.total_steps, done=state.step
    )
    try:
        interruption.save_from_now_on()
        loop = Loop(
            plan,
            cfg.output,
            cfg.evaluation,
            trainer=group,
            monitor=monitors,
            checkpoints=checkpoints,
            state=state,
            interrupted=lambda: interruption.caught,
        )
        finished = loop.run()
        group.relay_log()
    finally:
        monitors.finish()
    if not finished:
        return Summary(folder, True, {})
    _publish(cfg, folder, group, checkpoints, state)
    results = _results(state, epoch=state.epoch(plan.num_rows))
    write_results(folder, results)
    state.save(folder)
    if cfg.output.plot_loss:
        plot_loss(state.log_history, folder / "training_loss.png")
    _card(cfg, folder, results)
    return Summary(folder, False, results)


def _publish(
    cfg: RunConfig, folder: Path, group: TrainerGroup, checkpoints: CheckpointStore, state: TrainState
) -> None:
    """Put the finished weights into the output folder: those of the best checkpoint, of the last, or of the ranks."""
    step = state.best_step if cfg.evaluation.load_best_model_at_end and state.best_step else state.step
    if step in checkpoints.steps():
        if step != state.step:
            log.info("the best model is that of step %s (%s)", step, state.best_metric)
        publish_weights(checkpoints.path(step), folder)
        return
    staged = checkpoints.stage(step)
    group.save(staged, with_state=False)
    publish_weights(staged, folder)
    checkpoints.sweep_staging()


def _results(state: TrainState, *, epoch: float) -> dict[str, Entry]:
    results = {"train": _train_results(state, epoch=epoch)}
    evaluations = [entry for entry in state.log_history if "eval_runtime" in entry]
    if evaluations:
        results["eval"] = {key: value for key, value in evaluations[-1].items() if key.startswith(("eval_", "epoch"))}
    return results


def _train_results(state: TrainState, *, epoch: float) -> Entry:
    seconds = max(state.elapsed, 1e-9)
    return {
        "epoch": round(epoch, 4),
        "train_loss": state.loss_sum / max(state.step, 1),
        "train_runtime": round(state.elapsed, 4),
        "train_samples_per_second": round(state.num_rows / seconds, 3),
        "train_steps_per_second": round(state.step / seconds, 3),
        "train_tokens_per_second": round(state.num_tokens / seconds, 3),
        "num_input_tokens_seen": state.num_tokens,
    }


def _card(cfg: RunConfig, folder: Path, results: dict[str, Entry]) -> None:
    keys = ("learning_rate", "num_train_epochs", "cutoff_len", "global_batch_size", "lora_rank", "seed")
    flat = dump(cfg)
    write_model_card(
        folder,
        base_model=cfg.model.model_name_or_path,
        method=cfg.adapter.finetuning_type,
        stage=cfg.train.stage,
        datasets=list(cfg.data.dataset),
        settings={key: flat[key] for key in keys if key in flat},
        results={key: value for part in results.values() for key, value in part.items()},
    )


class _Interruption:
    """Ctrl-C (and SIGTERM): before the first step it ends the run at once; later the first one lets the running step
    finish and save, and the second one ends at once."""

    def __init__(self) -> None:
        self.caught = False
        self._first = 0.0
        self._saves = False

    def listen(self) -> None:
        for number in _SIGNALS:
            signal.signal(number, self._catch)

    def save_from_now_on(self) -> None:
        # Python drops a KeyboardInterrupt that comes within a callback of its own; the flag stays.
        if self.caught:
            raise KeyboardInterrupt
        self._saves = True

    def _catch(self, _number: int, _frame: object) -> None:
        again, now = self.caught, time.monotonic()
        if again and now - self._first < _ECHO:
            return
        if not again:
            self.caught, self._first = True, now
        if again or not self._saves:
            raise KeyboardInterrupt
        log.info("stopping after this step; press Ctrl-C again to end without saving")


@contextmanager
def _listening() -> Iterator[_Interruption]:
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    interruption = _Interruption()
    interruption.listen()
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_name(cfg: RunConfig) -> str:
    return cfg.output.run_name or str(cfg.output.output_dir)
