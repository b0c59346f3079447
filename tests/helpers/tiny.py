"""A two-layer Llama with a byte tokenizer: every feature of a real model folder in half a megabyte."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """One token a byte after <|endoftext|>=0, <|im_start|>=1, <|im_end|>=2 (end and pad); ChatML template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_config(*, tied: bool = False, hidden: int = 64, max_positions: int = 256) -> LlamaConfig:
    """Two layers, hidden size 64, two heads of 32 with one key-value head, 259 tokens."""
    return LlamaConfig(
        vocab_size=len(SPECIAL_TOKENS) + 256,
        hidden_size=hidden,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=max_positions,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )


def tiny_model(*, tied: bool = False, hidden: int = 64, seed: int = 0, max_positions: int = 256) -> Any:
    """The LlamaForCausalLM in memory, float32, random weights that depend on the seed alone.

    It is typed as Any because transformers' annotations of `to` and of submodules do not hold.
    """
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(tiny_config(tied=tied, hidden=hidden, max_positions=max_positions))
    torch.set_rng_state(state)
    return model.eval()


def tiny_experts() -> Any:
    """A mixture of three experts, whose checkpoint has other tensors than transformers keeps in memory."""
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=3,
    )
    return MixtralForCausalLM(config)


def tiny_model_folder(path: Path, *, tied: bool = False, seed: int = 0, max_positions: int = 256) -> Path:
    """Write model and tokenizer as a Hugging Face folder and return it."""
    tiny_model(tied=tied, seed=seed, max_positions=max_positions).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path
