from typing import Any

from huggingface_hub import ModelCard

from raytune.monitors.model_card import write_model_card


def card(folder, **changes):
    facts: dict[str, Any] = {
        "base_model": "owner/model",
        "method": "lora",
        "stage": "sft",
        "datasets": ["identity", "alpaca"],
        "settings": {"learning_rate": 0.0001},
        "results": {"eval_loss": 1.5},
    }
    write_model_card(folder, **{**facts, **changes})
    return ModelCard.load(folder / "README.md")


def test_the_hub_reads_the_cards_header(tmp_path):
    data = card(tmp_path).data.to_dict()
    assert data["base_model"] == "owner/model"
    assert data["library_name"] == "peft"
    assert set(data["tags"]) == {"raytune", "lora", "sft"}


def test_the_card_names_data_settings_and_results(tmp_path):
    text = card(tmp_path).text
    for part in ("identity, alpaca", "| learning_rate | 0.0001 |", "| eval_loss | 1.5 |"):
        assert part in text
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]


def test_a_base_model_with_yaml_in_its_name_stays_one_value(tmp_path):
    assert card(tmp_path, base_model="C: my models #1").data.to_dict()["base_model"] == "C: my models #1"


def test_a_full_run_is_no_peft_model(tmp_path):
    assert card(tmp_path, method="full").data.to_dict().get("library_name") != "peft"
