import pytest
from peft import LoraConfig, PeftModel, get_peft_model

from raytune.errors import CheckpointError
from raytune.stages.weights import load_adapter_weights
from tests.helpers.tiny import tiny_model


def adapted(rank: int, targets: list[str]) -> PeftModel:
    return get_peft_model(tiny_model(), LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules=targets))


@pytest.mark.parametrize(
    ("rank", "targets", "reason"),
    [(8, ["q_proj", "v_proj"], "size mismatch"), (4, ["q_proj"], "v_proj")],
    ids=["other rank", "fewer targets"],
)
def test_an_adapter_of_another_shape_is_the_users_error(tmp_path, rank, targets, reason):
    adapted(4, ["q_proj", "v_proj"]).save_pretrained(str(tmp_path))
    with pytest.raises(CheckpointError, match=rf"does not fit this run: .*{reason}.*lora_rank"):
        load_adapter_weights(adapted(rank, targets), tmp_path)
