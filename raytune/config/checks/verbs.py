"""What one verb needs and the others do not."""

from raytune.config.checks.broken import Broken, broken
from raytune.config.checks.reinforcement import answers_are_rewarded
from raytune.config.checks.rows import ranks_share_a_step
from raytune.config.checks.stage import ppo_trains
from raytune.config.run import RunConfig


def train_has_output_dir(config: RunConfig) -> Broken | None:
    fix = "Set output_dir to the folder for checkpoints, logs and the result."
    return broken(config.output.output_dir is None, "training needs output_dir", "output_dir", fix=fix)


def train_trains(config: RunConfig) -> Broken | None:
    asked = [key for key, used in (("do_eval", config.train.do_eval), ("do_predict", config.train.do_predict)) if used]
    what = f"{' and '.join(asked) or 'do_train: false'} without training is not built yet"
    return broken(not config.trains, what, *asked, "do_train", fix="Set do_train: true.")


def train_has_dataset(config: RunConfig) -> Broken | None:
    wrong = config.trains and not has_training_rows(config)
    return broken(wrong, "training needs dataset", "dataset", fix="Set dataset to names in dataset_info.json.")


def has_training_rows(config: RunConfig) -> bool:
    return bool(config.data.dataset) or config.data.tokenized_path is not None


def evaluation_has_rows(config: RunConfig) -> Broken | None:
    wanted = {
        "do_eval": config.train.do_eval,
        "do_predict": config.train.do_predict,
        "eval_strategy": config.evaluation.eval_strategy != "no",
        "eval_on_start": config.evaluation.eval_on_start,
    }
    asked = [key for key, used in wanted.items() if used]
    rows = bool(config.data.eval_dataset) or config.data.val_size > 0 or config.data.tokenized_path is not None
    what = f"{' and '.join(asked)} needs rows to evaluate on"
    return broken(bool(asked) and not rows, what, *asked, fix="Set eval_dataset or val_size.")


def train_is_huggingface(config: RunConfig) -> Broken | None:
    backend = config.sampling.infer_backend
    what = f"infer_backend {backend} cannot train"
    return broken(backend != "huggingface", what, "infer_backend", fix="Leave infer_backend out.")


def device_map_is_inference(config: RunConfig) -> Broken | None:
    wrong = config.quant.quantization_device_map is not None
    return broken(wrong, "quantization_device_map is for inference only", "quantization_device_map")


def data_has_dataset(config: RunConfig) -> Broken | None:
    wrong = not has_training_rows(config) and not config.data.eval_dataset
    return broken(wrong, "there is no data set to show", "dataset", fix="Set dataset to names in dataset_info.json.")


def export_has_dir(config: RunConfig) -> Broken | None:
    fix = "Set export_dir to the folder for the merged model."
    return broken(config.export.export_dir is None, "export needs export_dir", "export_dir", fix=fix)


def gptq_has_dataset(config: RunConfig) -> Broken | None:
    export = config.export
    wrong = isinstance(export.export_quantization_bit, int) and export.export_quantization_dataset is None
    keys = ("export_quantization_bit", "export_quantization_dataset")
    return broken(wrong, "export_quantization_bit needs export_quantization_dataset to calibrate on", *keys)


TRAIN_RULES = (
    train_has_output_dir,
    train_trains,
    train_has_dataset,
    evaluation_has_rows,
    train_is_huggingface,
    device_map_is_inference,
    ranks_share_a_step,
    ppo_trains,
    answers_are_rewarded,
)
DATA_RULES = (data_has_dataset,)
EXPORT_RULES = (export_has_dir, gptq_has_dataset)
