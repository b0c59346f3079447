"""Learning from preferences: dpo and its kin, kto."""

from typing import ClassVar, Literal

from pydantic import Field

from raytune.config.base import Group, Names


class PreferenceConfig(Group):
    built: ClassVar[bool] = False

    pref_loss: Literal["sigmoid", "hinge", "ipo", "kto_pair", "orpo", "simpo"] = "sigmoid"
    """Loss of stage dpo; orpo and simpo need no reference model."""
    pref_beta: float = Field(0.1, ge=0)
    """Strength of the leash to the reference model."""
    pref_ftx: float = Field(0.0, ge=0)
    """Weight of the supervised loss on the chosen answer."""
    pref_bco_weight: float = Field(0.0, ge=0)
    """Weight of the binary classifier loss."""
    dpo_label_smoothing: float = Field(0.0, ge=0, le=0.5)
    """Share of labels believed to be swapped (sigmoid only)."""
    kto_chosen_weight: float = Field(1.0, ge=0)
    """Weight of desirable answers."""
    kto_rejected_weight: float = Field(1.0, ge=0)
    """Weight of undesirable answers."""
    simpo_gamma: float = 0.5
    """Margin that the chosen answer should have (simpo)."""
    ld_alpha: float | None = Field(None, ge=0, le=1)
    """Weight of tokens past the shorter answer's length (LD-DPO)."""
    ref_model: str | None = None
    """Reference model; null is the model before training."""
    ref_model_adapters: Names = ()
    """Adapters of the reference model."""
    ref_model_quantization_bit: int | None = Field(None, ge=1, le=8)
    """Bits per weight of the reference model."""
