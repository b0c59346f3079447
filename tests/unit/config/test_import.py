"""Loading a config must not load what computes: `raytune --help` and `config show` are to be instant."""

import subprocess
import sys

CODE = """
import sys, time
start = time.process_time()
import raytune.config.load
print(time.process_time() - start)
print(*sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'transformers', 'ray', 'datasets', 'numpy'}))
"""


def run() -> tuple[float, str]:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=60)
    seconds, _, modules = done.stdout.partition("\n")
    return float(seconds), modules.strip()


def test_import_is_fast_and_light() -> None:
    # Processor time and the best of a few, with room for a busy machine: torch alone would take longer.
    runs = [run() for _ in range(4)]
    assert {modules for _, modules in runs} == {""}
    assert min(seconds for seconds, _ in runs) < 1.0
