import pytest

from actors.rollout_vllm import check_arguments
from actors.vllm_arguments import arguments_in, known_arguments
from raytune.errors import ConfigError

SOURCE = '''
class EngineArgs:
    model: str = "m"
    """Which."""
    swap: Annotated[float, 1] = 4
    other = 3
    def run(self): local: int = 1

class AsyncEngineArgs(EngineArgs):
    enable_log_requests: bool = False

class Another:
    no: int
'''


def test_the_fields_of_both_classes_and_no_others():
    assert list(arguments_in(SOURCE)) == ["model", "swap", "enable_log_requests"]


def test_what_vllm_documents_is_found_in_the_installed_one():
    documented = {"model", "max_model_len", "max_num_seqs", "gpu_memory_utilization", "enforce_eager", "seed"}
    assert documented <= (known_arguments() or {}).keys()


def test_an_unknown_one_is_refused_with_a_near_name():
    with pytest.raises(ConfigError, match=r"no engine argument 'max_num_sequences'.*Did you mean 'max_num_seqs'"):
        check_arguments({"max_num_sequences": 4}, known_arguments() or {})
