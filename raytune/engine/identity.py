"""What makes two runs the same run, read off a config: the subject, and all that shapes the state of a checkpoint."""

from raytune.config.load import dump
from raytune.config.run import RunConfig

Identity = dict[str, str]
"""Settings by key, as text for people. Made by `identity_of`, kept in run.json."""

# A run may go on from a checkpoint of another folder with these changed. Tensors of another model do not fit, which the
# loading of its weights says.
SUBJECT = ("model_name_or_path", "stage", "dataset")
_VOCABULARY = ("resize_vocab", "add_tokens", "add_special_tokens")
_FREEZE = ("freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules")
_NEW_ADAPTER = ("lora_rank", "lora_target", "additional_target", "use_rslora")
_SETS = ("lora_target", "additional_target", "freeze_trainable_modules", "freeze_extra_modules")
_FOLLOW_A_METRIC = ("reduce_lr_on_plateau", "greedy")


def identity_of(cfg: RunConfig) -> Identity:
    """The settings that must not change between the start of a run and its end.

    Values that end in the same tensors have one text: an alpha of null is twice the rank, the fused AdamW keeps the
    state of the plain one, and every schedule that is a function of the step goes on from any other.
    """
    flat = dump(cfg)
    keys = [*SUBJECT, "finetuning_type", *_VOCABULARY, "optim_args"]
    found: dict[str, object] = {"optim": flat["optim"].removesuffix("_fused")}
    kind = flat["lr_scheduler_type"]
    found["lr_scheduler_type"] = kind if kind in _FOLLOW_A_METRIC else "a function of the step"
    if kind in _FOLLOW_A_METRIC:
        keys.append("lr_scheduler_kwargs")
    if flat["stage"] == "ppo":
        keys.append("critic")
    match flat["finetuning_type"]:
        case "lora":
            keys += ["adapter_name_or_path", "create_new_adapter"]
            if flat["create_new_adapter"] or not flat["adapter_name_or_path"]:
                # Else the shape is that of the adapter that is trained on.
                keys += _NEW_ADAPTER
                found["lora_alpha"] = flat["lora_alpha"] or 2 * flat["lora_rank"]
        case "freeze":
            keys += _FREEZE
    # Sets of names count whatever their order.
    read = {key: sorted(flat[key]) if key in _SETS and flat[key] else flat[key] for key in keys}
    return {key: _text(value) for key, value in (read | found).items()}


def differences(before: Identity, now: Identity) -> list[str]:
    """Keys that both runs have, with other values."""
    return [key for key in now if key in before and before[key] != now[key]]


def _text(value: object) -> str:
    match value:
        case None | [] | ():
            return "not set"
        case list():
            return ",".join(map(str, value))
        case bool():
            return str(value).lower()
        case _:
            return str(value)
