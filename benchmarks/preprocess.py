"""Preprocessing against `datasets.map`: alpaca rows to token ids and labels with the smollm2 template, cold cache.

    python benchmarks/preprocess.py --rows 20000 --processes 2 --rounds 2

Both run by turns, each in a fresh process, with the same number of worker processes of one tokenizer thread. What
counts: from the JSON file to written rows. Ours includes starting the workers and loading the tokenizer in them;
theirs begins with the tokenizer loaded. Starting Ray and importing libraries count for neither.
"""

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

DEMO = Path(__file__).parents[1].parent / "shared" / "data" / "alpaca_en_demo.json"
MODEL = "smollm2-135m-instruct"
CUTOFF = 2048
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face."
_DEADLINE = 3600


def write_rows(path: Path, count: int) -> None:
    """Write `count` different rows as one JSON list: the demo rows over and over, with a number in each."""
    rows = json.loads(DEMO.read_text(encoding="utf-8"))
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = dict(rows[number % len(rows)])
            row["instruction"] += f" (case {number})"
            row["output"] += f" [{number * 7919}]"
            file.write(("[\n" if number == 0 else ",\n") + json.dumps(row, ensure_ascii=False))
        file.write("\n]\n")


class Memory:
    """Watches this process and its worker processes; peaks in MiB. Within: a thread that looks four times a second."""

    def __init__(self, *, workers_named: str | None) -> None:
        self._named = workers_named
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.before = self.driver = _anonymous(os.getpid())
        self.workers: dict[int, int] = {}

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(timeout=10)

    def _watch(self) -> None:
        while not self._end.wait(0.25):
            self.driver = max(self.driver, _anonymous(os.getpid()))
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit() and self._is_worker(int(entry.name)):
                    pid = int(entry.name)
                    self.workers[pid] = max(self.workers.get(pid, 0), _status(pid).get("VmRSS", 0))

    def _is_worker(self, pid: int) -> bool:
        if self._named is not None:
            return self._named in _read(pid, "cmdline")
        return _status(pid).get("PPid") == os.getpid()


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""


def _status(pid: int) -> dict[str, int]:
    """Numbers of /proc/<pid>/status; sizes in KiB."""
    lines = (line.split() for line in _read(pid, "status").splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def _anonymous(pid: int) -> int:
    return _status(pid).get("RssAnon", 0)


def run_ours(rows: Path, work: Path, processes: int) -> dict[str, Any]:
    import ray

    from actors.data import prepare_data
    from raytune.config.load import load_config
    from raytune.data.store import RowStore

    flat = {
        "model_name_or_path": MODEL,
        "stage": "sft",
        "template": "smollm2",
        "dataset": str(rows),
        "cutoff_len": CUTOFF,
        "preprocessing_num_workers": processes,
        "data_cache_dir": str(work / "cache"),
        "output_dir": str(work / "out"),
    }
    cfg = load_config(flat).config
    ray.init(num_cpus=8, include_dashboard=False, _temp_dir=str(work / "ray"), logging_level=logging.ERROR)
    with Memory(workers_named="ray::DataWorker") as memory:
        started = time.perf_counter()
        prepared = prepare_data(cfg)
        seconds = time.perf_counter() - started
    assert prepared.train is not None
    store = RowStore.open(prepared.train)
    ray.shutdown()
    return _result(seconds, len(store), int(store.lengths.sum()), memory)


def run_theirs(rows: Path, work: Path, processes: int) -> dict[str, Any]:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import datasets

    from raytune.config.model import ModelConfig
    from raytune.models.tokenizer import load_tokenizer

    datasets.disable_progress_bars()
    tokenizer = load_tokenizer(ModelConfig(model_name_or_path=MODEL))

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        asked = ["\n".join(filter(None, pair)) for pair in zip(batch["instruction"], batch["input"], strict=True)]
        before = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
        prompts = [f"{before}<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in asked]
        sources = tokenizer(prompts, add_special_tokens=False)["input_ids"]
        answers = tokenizer([f"{text}<|im_end|>\n" for text in batch["output"]], add_special_tokens=False)["input_ids"]
        pairs = list(zip(sources, answers, strict=True))
        return {
            "input_ids": [(source + answer)[:CUTOFF] for source, answer in pairs],
            "labels": [([-100] * len(source) + answer)[:CUTOFF] for source, answer in pairs],
        }

    with Memory(workers_named=None) as memory:
        started = time.perf_counter()
        loaded: Any = datasets.load_dataset("json", data_files=str(rows), split="train", cache_dir=str(work / "hf"))
        encoded: Any = loaded.map(
            encode, batched=True, batch_size=1000, num_proc=processes, remove_columns=loaded.column_names
        )
        seconds = time.perf_counter() - started
    tokens = sum(len(row["input_ids"]) for row in encoded)
    return _result(seconds, len(encoded), tokens, memory)


def _result(seconds: float, rows: int, tokens: int, memory: Memory) -> dict[str, Any]:
    return {
        "seconds": round(seconds, 2),
        "rows_per_second": round(rows / seconds),
        "tokens": tokens,
        "worker_peak_mib": max(memory.workers.values(), default=0) >> 10,
        "driver_growth_mib": (memory.driver - memory.before) >> 10,
    }


RUNS = {"raytune": run_ours, "datasets.map": run_theirs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--one", choices=RUNS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        work = Path(tempfile.mkdtemp(prefix="rtb-"))
        try:
            print(json.dumps(RUNS[arguments.one](arguments.file, work, arguments.processes)))
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return
    with tempfile.TemporaryDirectory(prefix="rtb-") as folder:
        file = Path(folder) / "rows.json"
        write_rows(file, arguments.rows)
        print(f"{arguments.rows} rows, {file.stat().st_size >> 20} MiB, {arguments.processes} processes", flush=True)
        for _ in range(arguments.rounds):
            for name in RUNS:
                command = [sys.executable, __file__, "--one", name, "--file", str(file)]
                command += ["--processes", str(arguments.processes)]
                ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_DEADLINE)
                if ended.returncode:
                    sys.exit(f"{name} failed:\n{ended.stderr[-4000:]}")
                print(f"{name:13}", ended.stdout.strip().splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
