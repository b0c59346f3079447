"""Which model and tokenizer, and what is done to them before anything is trained."""

from typing import Annotated, Literal

from raytune.config.base import Group, Names, NotBuilt


class ModelConfig(Group):
    model_name_or_path: str
    """The model: `smollm2-135m-instruct` (embedded, needs no network), a local folder, or a hub id."""
    model_revision: str = "main"
    """Branch, tag or commit of a hub model."""
    cache_dir: str | None = None
    """Folder for models from a hub; null is the hub library's own."""
    trust_remote_code: bool = False
    """Run the Python code that a hub model brings along."""
    hf_hub_token: str | None = None
    """Token for private models on the Hugging Face hub."""
    ms_hub_token: Annotated[str | None, NotBuilt()] = None
    """Token for private models on ModelScope."""
    use_fast_tokenizer: bool = True
    """Use the Rust tokenizer where the model has one."""
    split_special_tokens: bool = False
    """Tokenize special tokens found in the text like any other text."""
    add_tokens: Names = ()
    """Ordinary tokens to add to the vocabulary."""
    add_special_tokens: Names = ()
    """Special tokens to add to the vocabulary."""
    new_special_tokens_config: Annotated[str | None, NotBuilt()] = None
    """YAML file that describes new special tokens, to start their embeddings from the words."""
    init_special_tokens: Annotated[
        Literal["noise_init", "desc_init", "desc_init_w_noise"], NotBuilt(("desc_init", "desc_init_w_noise"))
    ] = "noise_init"
    """How embeddings of new tokens start: noise around the mean, or the mean of their description."""
    resize_vocab: bool = False
    """Grow the embeddings to the tokenizer's vocabulary."""
    rope_scaling: Literal["linear", "dynamic", "yarn", "llama3"] | None = None
    """Stretch rotary positions when cutoff_len is past what the model was trained on."""
    flash_attn: Literal["auto", "disabled", "sdpa", "fa2", "fa3"] = "auto"
    """Attention implementation; auto takes the fastest that is installed and correct here."""
    train_from_scratch: bool = False
    """Start from random weights instead of the trained ones."""
    print_param_status: bool = False
    """Log name, type and trainability of every parameter, for debugging."""
