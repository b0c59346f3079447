"""README.md of a trained model: what it was made from, with what, and how it did."""

import json
from pathlib import Path

from raytune.monitors.base import Entry


def write_model_card(
    folder: Path,
    *,
    base_model: str,
    method: str,
    stage: str,
    datasets: list[str],
    settings: dict[str, object],
    results: Entry,
) -> None:
    """Write the model card with the metadata header that the Hugging Face hub reads."""
    lines = ["---", f"base_model: {json.dumps(base_model)}", "tags:", "- raytune", f"- {method}", f"- {stage}"]
    if method == "lora":
        lines += ["library_name: peft"]
    lines += ["---", "", f"# {base_model} after {stage} ({method})", ""]
    lines += [f"Trained with raytune on {', '.join(datasets)}.", "", "## Settings", "", "| key | value |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in settings.items()]
    lines += ["", "## Results", "", "| metric | value |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in results.items()]
    temporary = folder / ".README.md"
    temporary.write_text("\n".join(lines) + "\n")
    temporary.replace(folder / "README.md")
