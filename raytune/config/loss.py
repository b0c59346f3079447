"""Other losses than cross-entropy for supervised training."""

from typing import ClassVar

from raytune.config.base import Group


class LossConfig(Group):
    built: ClassVar[bool] = False

    use_dft_loss: bool = False
    """Weigh each token's loss by its probability (DFT)."""
    use_asft_loss: bool = False
    """DFT with a leash to the reference model (ASFT)."""
    asft_alpha: float = 0.1
    """Strength of that leash."""
    use_eaft_loss: bool = False
    """Weigh each token's loss by the entropy of its distribution (EAFT)."""
    eaft_alpha: float = 1.0
    """Power of that weight."""
