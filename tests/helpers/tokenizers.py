"""Small tokenizers built in memory: a byte-level alphabet and the special tokens that a test names."""

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

CHATML = ("<|im_start|>", "<|im_end|>")
LLAMA3 = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
)


def byte_tokenizer(
    special: Sequence[str | AddedToken], *, bos: str | None = None, eos: str | None = None, chat: str | None = None
) -> PreTrainedTokenizerBase:
    """One token a byte, then one a special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)
    fast.chat_template = chat
    return fast


def llama3_tokenizer() -> PreTrainedTokenizerBase:
    """The special tokens of Llama 3 over bytes."""
    return byte_tokenizer(LLAMA3, bos="<|begin_of_text|>", eos="<|end_of_text|>")


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of one token."""
    number = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(number, int)
    return number


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of ids, special tokens included."""
    text = tokenizer.decode(list(ids))
    assert isinstance(text, str)
    return text
