"""A key that is honoured is read in one place outside the config package; a key that nobody reads is ignored."""

from raytune.config.keys import KEYS
from raytune.config.load import load_config
from raytune.config.readers import keys_read, readers
from raytune.errors import ConfigError

# Only one value of these is built, it is done anyway, or the config itself acts on it: nobody has to read them.
SETTLED_BY_CONFIG = {
    "compute_accuracy",
    "ddp_find_unused_parameters",
    "do_eval",
    "do_train",
    "fsdp_sharding_strategy",
    "fsdp_size",
    "infer_backend",
    "init_special_tokens",
    "use_kv_cache",
}

# Files that start, describe or identify a run; they may look at keys that others act on.
ONLOOKERS = {
    "raytune/chat.py",
    "raytune/data/check/lengths.py",
    "raytune/data/check/run.py",
    "raytune/data/check/settings.py",
    "raytune/data/check/sides.py",
    "raytune/data/inputs.py",
    "raytune/data/show.py",
    "raytune/export/merge.py",
    "raytune/launch.py",
    "raytune/launch_rl/bundles.py",
    "raytune/launch_rl/check.py",
    "raytune/launch_rl/room.py",
    "raytune/plan.py",
    "raytune/stages/sizes.py",
}

# Keys that several places must know, and why.
SEVERAL_READERS = {
    "model_name_or_path": "weights and tokenizer are loaded apart",
    "model_revision": "weights and tokenizer are loaded apart",
    "cache_dir": "weights and tokenizer are loaded apart",
    "trust_remote_code": "weights and tokenizer are loaded apart",
    "hf_hub_token": "weights and tokenizer are loaded apart",
    "ms_hub_token": "weights and tokenizer are loaded apart",
    "add_tokens": "the tokenizer and the embeddings grow together",
    "add_special_tokens": "the tokenizer and the embeddings grow together",
    "finetuning_type": "it shapes the adapter and what is saved",
    "flash_attn": "the model is loaded with it, and auto is settled once lengths are known",
    "per_device_eval_batch_size": "rows are batched by it, and the driver sends parts of so many batches",
    "cutoff_len": "rows are cut to it and positions must reach it",
    "packing": "sft and pt pack differently",
    "neat_packing": "rows are cut for it before they are packed",
    "template": "a user's file is read once, on the driver, and each process loads what it says",
    "tool_format": "a template is loaded, then rendered",
    "tool_date": "a template is loaded, then rendered",
    "default_system": "a template is loaded, then rendered",
    "enable_thinking": "a template is loaded, then rendered",
    "preserve_thinking": "a template is loaded, then rendered",
    "compat": "each place where the other program differs",
    "per_device_train_batch_size": "it sizes a step and a forward pass",
    "adapter_name_or_path": "adapters are loaded, and a model may bring its own value head",
    "adapter_folder": "adapters are loaded, and a model may bring its own value head",
    "stage": "learning from rows and learning from answers are two loops",
    "max_tokens_per_batch": "learning from rows and learning from answers are two loops",
    "num_train_epochs": "learning from rows and learning from answers are two loops",
    "max_steps": "learning from rows and learning from answers are two loops",
    "disable_shuffling": "learning from rows and learning from answers are two loops",
    "seed": "everything random begins with it",
    "data_seed": "learning from rows and learning from answers are two loops",
    "logging_strategy": "learning from rows and learning from answers are two loops",
    "logging_steps": "learning from rows and learning from answers are two loops",
    "save_strategy": "learning from rows and learning from answers are two loops",
    "save_steps": "learning from rows and learning from answers are two loops",
    "save_total_limit": "learning from rows and learning from answers are two loops",
    "save_only_model": "learning from rows and learning from answers are two loops",
    "eval_strategy": "learning from rows and learning from answers are two loops",
    "eval_steps": "learning from rows and learning from answers are two loops",
    "eval_on_start": "learning from rows and learning from answers are two loops",
    "load_best_model_at_end": "learning from rows and learning from answers are two loops",
    "metric_for_best_model": "learning from rows and learning from answers are two loops",
    "greater_is_better": "learning from rows and learning from answers are two loops",
    "early_stopping_steps": "learning from rows and learning from answers are two loops",
    "engine": "learning from rows and learning from answers are two loops",
    "num_workers": "learning from rows and learning from answers are two loops",
    "temperature": "a Sampling carries it to those who draw and learn",
    "top_p": "a Sampling carries it to those who draw and learn",
    "top_k": "a Sampling carries it to those who draw and learn",
    "max_new_tokens": "a Sampling carries it to those who draw and learn",
    "entropy_coef": "a PolicyRule carries it",
    "buffer_size": "windows have so many rows, and so many are shuffled among each other",
    "group_by_length": "rows are prepared or streamed",
    "interleave_probs": "rows are prepared or streamed",
    "mix_strategy": "rows are prepared or streamed",
    "preprocessing_batch_size": "rows are prepared or streamed",
    "skip_invalid": "rows are prepared or streamed",
    "val_size": "rows are prepared or streamed",
    "reward_model": "a server's address, or a model of one's own",
    "reward_model_type": "a server's address, or a model of one's own",
    "reward_model_adapters": "a model of one's own, from which a critic may begin",
    "reward_weights": "the reward model's weight is the last of them",
    "reward_time_limit": "functions limit themselves, and actors those who do not",
}

# What a run that learns from answers does not come by.
LEARNS_FROM_ROWS = {
    "raytune/data/budget.py",
    "raytune/data/pretrain.py",
    "raytune/data/stream_windows.py",
    "raytune/stages/rank.py",
    "raytune/stages/stream_rows.py",
}

# Keys that are read there alone, with values beside the default.
OF_ROWS_ALONE: dict[str, object] = {
    "buffer_size": 100,
    "group_by_length": True,
    "ignore_pad_token_for_loss": False,
    "label_smoothing_factor": 0.1,
    "neftune_noise_alpha": 5,
    "packing": True,
}


def honoured() -> set[str]:
    """Keys of which some value beside the default is built."""
    return {name for name, key in KEYS.items() if key.not_built is None or key.not_built.values is not None}


def test_every_honoured_key_is_read() -> None:
    unread = {key for key in honoured() if not readers()[key]}
    assert sorted(unread - SETTLED_BY_CONFIG) == []


def test_a_key_is_read_in_one_place() -> None:
    acting = {key: set(files) - ONLOOKERS for key, files in readers().items() if key not in SEVERAL_READERS}
    assert {key: sorted(files) for key, files in acting.items() if len(files) > 1} == {}


def test_keys_of_learning_from_rows_are_not_passed_over_where_answers_are_learned_from() -> None:
    acting = {key: set(files) - ONLOOKERS for key, files in readers().items()}
    assert {key for key, files in acting.items() if files and files <= LEARNS_FROM_ROWS} == set(OF_ROWS_ALONE)
    for stage in ("ppo", "grpo"):
        assert [key for key, value in OF_ROWS_ALONE.items() if key not in told(stage, key, value)] == []


def told(stage: str, key: str, value: object) -> str:
    """What is said of a key: warnings, or the refusal."""
    try:
        return " ".join(load_config({"model_name_or_path": "m", "stage": stage, key: value}).warnings)
    except ConfigError as error:
        return str(error)


def test_exceptions_are_keys() -> None:
    assert (SETTLED_BY_CONFIG | set(SEVERAL_READERS)) <= set(KEYS)


def test_only_attributes_of_configs_count() -> None:
    source = """
rank = cfg.adapter.lora_rank
size = self.data_cfg.cutoff_len
optimizer = torch.optim.AdamW(parameters)
seed = config.train.seed
"""
    assert keys_read(source) == {"lora_rank", "cutoff_len", "seed"}


def test_a_group_is_no_key() -> None:
    assert keys_read("def f(cfg: RunConfig): return cfg.template") == set()
    assert keys_read("def f(cfg: RunConfig): return cfg.template.template") == {"template"}
    assert keys_read("def f(cfg: OptimConfig): return cfg.optim") == {"optim"}
