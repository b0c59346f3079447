import json
from pathlib import Path

import pytest

from raytune.config.load import dump, load_config
from raytune.errors import ConfigError

MODEL = {"model_name_or_path": "m"}


def write(folder: Path, text: str, name: str = "train.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def error_of(source: Path | dict[str, object], *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    return str(caught.value)


def test_values_land_in_their_groups_with_their_origin(tmp_path: Path) -> None:
    path = write(tmp_path, "# a comment\nmodel_name_or_path: m\n\nlora_rank: 4\nray_num_workers: 2\n")
    resolved = load_config(path, ["seed=7"])
    assert (resolved.config.adapter.lora_rank, resolved.config.train.seed) == (4, 7)
    assert resolved.config.cluster.num_workers == 2
    assert resolved.origin["lora_rank"] == "train.yaml line 4"
    assert resolved.origin["seed"] == "command line"
    assert resolved.origin["num_workers"] == "alias ray_num_workers (train.yaml line 5)"
    assert resolved.origin["lora_dropout"] == "default"
    assert resolved.warnings == ("'ray_num_workers' (train.yaml line 5) is another name of 'num_workers'; write that",)


def test_unknown_key_names_line_and_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, "model_name_or_path: m\nlora_rnak: 4\n")
    assert error_of(path) == "unknown key 'lora_rnak' (train.yaml line 2). Did you mean 'lora_rank'?"


def test_wrong_type_names_line_value_and_type(tmp_path: Path) -> None:
    path = write(tmp_path, "model_name_or_path: m\nlora_rank: many\n")
    assert error_of(path) == "'lora_rank' takes an integer >= 1, not 'many' (train.yaml line 2)."


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "lora_rnak: 4\nlearning_rate: fast\nflash_attn: fa9\ndevice_map: auto\nlora_dropout: 1.5\n")
    text = error_of(path, "max_stesp=3")
    assert text.startswith("7 problems in train.yaml:\n")
    for part in (
        "lora_rnak",
        "'fast' (train.yaml line 2)",
        "'fa9' (train.yaml line 3)",
        "'device_map' is not taken",
        "'lora_dropout' takes a number >= 0 and < 1, not 1.5 (train.yaml line 5)",
        "'max_stesp' (command line). Did you mean 'max_steps'?",
        "key 'model_name_or_path' is missing",
    ):
        assert part in text


def test_broken_rules_name_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "model_name_or_path: m\nbf16: true\nfp16: true\n")
    text = error_of(path)
    assert "fp16 excludes bf16" in text
    assert "fp16: train.yaml line 3" in text


@pytest.mark.parametrize("text", ["1e-5", "'1e-5'", "1.0e-05", "0.00001"])
def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, f"model_name_or_path: m\nlearning_rate: {text}\n")
    assert load_config(path).config.optim.learning_rate == 1e-5


@pytest.mark.parametrize("key", ["lora_rank", "learning_rate", "max_samples"])
def test_true_is_no_number(key: str) -> None:
    assert "not true" in error_of({**MODEL, key: True})


@pytest.mark.parametrize("value", ["a, b", ["a", "b"], "a,b,"])
def test_lists_may_be_comma_separated(value: object) -> None:
    assert load_config({**MODEL, "dataset": value}).config.data.dataset == ("a", "b")


def test_a_bare_no_is_a_word(tmp_path: Path) -> None:
    path = write(tmp_path, "model_name_or_path: m\nsave_strategy: no\neval_strategy: no\nreport_to: none\n")
    config = load_config(path).config
    assert (config.output.save_strategy, config.evaluation.eval_strategy, config.output.report_to) == ("no", "no", ())


def test_dates_and_numbers_may_be_names(tmp_path: Path) -> None:
    path = write(tmp_path, "model_name_or_path: m\nrun_name: 2025-08-15\nmodel_revision: 42\n")
    config = load_config(path).config
    assert (config.output.run_name, config.model.model_revision) == ("2025-08-15", "42")


def test_a_key_given_twice_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 1\nmodel_name_or_path: m\nseed: 1\n")
    assert error_of(path) == "key 'seed' stands twice (train.yaml line 3, first in line 1)."


def test_two_names_of_one_key_must_agree(tmp_path: Path) -> None:
    path = write(tmp_path, "model_name_or_path: m\nnum_workers: 1\nray_num_workers: 2\n")
    assert "'num_workers' is 1 by train.yaml line 2 and 2 by alias ray_num_workers" in error_of(path)
    assert (
        load_config(
            path.with_name(write(tmp_path, "model_name_or_path: m\nnum_workers: 1\n").name), ["ray_num_workers=2"]
        ).config.cluster.num_workers
        == 2
    )


def test_json_files_have_lines_too(tmp_path: Path) -> None:
    text = '{\n\t"model_name_or_path": "m",\n\t"lora_rank": 4,\n\t"fsdp_config": {"size": 1}\n}'
    resolved = load_config(write(tmp_path, text, "a.json"))
    assert resolved.origin["lora_rank"] == "a.json line 3"
    assert resolved.origin["fsdp_size"] == "a.json line 4"
    twice = error_of(write(tmp_path, '{"seed": 1,\n"seed": 2}', "b.json"))
    assert twice.startswith("key 'seed' stands twice (b.json line 2")
    assert error_of(write(tmp_path, '{"seed": 1,\n}', "c.json")).startswith("not valid JSON")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.yaml", "a: [1\nb: 2\n", "not valid YAML"),
        ("a.yaml", "a: 1\n b: 2\n", "(a.yaml line 2)"),
        ("a.yaml", "a: \x00", "not valid YAML"),
        ("a.yaml", "- 1\n", "a config file is a mapping of keys to values (a.yaml)."),
        ("a.json", "[1]", "a config file is a mapping of keys to values (a.json)."),
        ("a.toml", "", "Give a .yaml, .yml or .json file."),
        ("a.yaml", "", "key 'model_name_or_path' is missing (a.yaml)."),
    ],
)
def test_what_is_no_config_is_said(tmp_path: Path, name: str, text: str, said: str) -> None:
    assert said in error_of(write(tmp_path, text, name))


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    assert "no such config file" in error_of(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["lora_rank=4"], "lora_rank", 4),
        (["--lora_rank", "4"], "lora_rank", 4),
        (["--lora-rank=4"], "lora_rank", 4),
        (["--packing"], "packing", True),
        (["--packing", "lora_rank=4"], "packing", True),
        (["--packing", "--bf16"], "packing", True),
        (["--optim_args", "a=1,b=2"], "optim_args", "a=1,b=2"),
        (["--max_steps", "-1"], "max_steps", -1),
        (["dataset=[a, b]"], "dataset", ["a", "b"]),
        (["run_name="], "run_name", None),
        (["default_system=Say: no"], "default_system", "Say: no"),
        (["seed=1", "seed=2"], "seed", 2),
    ],
)
def test_overrides(words: list[str], key: str, value: object) -> None:
    assert dump(load_config(MODEL, words).config)[key] == value


def test_an_override_undoes_all_that_the_file_meant() -> None:
    file = {**MODEL, "optim": "muon", "use_fsdp": True, "stage": "orpo"}
    config = load_config(file, ["optim=sgd", "engine=ddp", "stage=sft"]).config
    assert (config.optim.optim, config.optim.use_muon) == ("sgd", False)
    assert config.cluster.engine == "ddp"
    assert (config.train.stage, config.preference.pref_loss) == ("sft", "sigmoid")


def test_a_lone_word_is_no_override() -> None:
    assert error_of({**MODEL}, "fast") == "cannot read 'fast' as an override (command line). Write key=value."


def test_dump_is_json_and_loads_back_equal(tmp_path: Path) -> None:
    given = {**MODEL, "dataset": "a,b", "lr_scheduler_kwargs": {"min_lr": 1e-6}, "resume_from_checkpoint": True}
    config = load_config(given).config
    path = write(tmp_path, json.dumps(dump(config)), "resolved.json")
    assert load_config(path).config == config


def test_secrets_are_not_dumped() -> None:
    config = load_config({**MODEL, "hf_hub_token": "hf_abc"}).config
    assert config.model.hf_hub_token == "hf_abc"
    assert "hf_abc" not in json.dumps(dump(config))


def test_the_mapping_of_a_wrong_kind_is_said() -> None:
    assert "it takes a mapping" in error_of({**MODEL, "fsdp_config": "fsdp.json"})
    assert "ray_init_kwargs" in error_of({**MODEL, "ray_init_kwargs": "{not json"})
    cluster = load_config({**MODEL, "ray_init_kwargs": '{"num_cpus": 8}'}).config.cluster
    assert cluster.ray_init_kwargs == {"num_cpus": 8}


@pytest.mark.parametrize(
    ("given", "trains"),
    [({}, True), ({"do_train": True, "do_eval": True}, True), ({"do_eval": True}, False), ({"do_train": False}, False)],
)
def test_training_is_the_default(given: dict[str, object], trains: bool) -> None:
    assert load_config({**MODEL, **given}).config.trains is trains


@pytest.mark.parametrize(
    ("given", "packs"),
    [({}, False), ({"stage": "pt"}, True), ({"stage": "pt", "packing": False}, False), ({"neat_packing": True}, True)],
)
def test_packing_follows_the_stage(given: dict[str, object], packs: bool) -> None:
    assert load_config({**MODEL, **given}).config.packs is packs
