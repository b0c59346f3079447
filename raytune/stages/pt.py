"""Pre-training: cross-entropy on every token of running text.

documents -> blocks of cutoff_len tokens, all labelled -> cross-entropy -> mean over the global batch's labels

Only the rows differ from supervised fine-tuning, so the loss is the same function.
"""

from raytune.stages.sft import build_loss

__all__ = ["build_loss"]
