"""Dynamic loss scaling for float16."""

from dataclasses import dataclass


@dataclass
class LossScale:
    """Scale that grows while gradients stay finite and halves when they overflow.

    PyTorch's GradScaler cannot see the other ranks' shards; the engine's gradient norm can, so the decision is taken
    from that one number and is the same everywhere.
    Source: Micikevicius et al. 2018, section 3.2; constants of torch.amp.GradScaler.
    """

    value: float = 65536.0
    growth_interval: int = 2000
    good_steps: int = 0

    @property
    def exhausted(self) -> bool:
        """True when shrinking further cannot help: the overflow comes from the model, not from the scale."""
        return self.value < 1.0

    def update(self, *, overflow: bool) -> None:
        """Account for one step."""
        if overflow:
            self.value, self.good_steps = self.value / 2, 0
            return
        self.good_steps += 1
        if self.good_steps == self.growth_interval:
            self.value, self.good_steps = self.value * 2, 0

    def state(self) -> dict[str, float | int]:
        return {"value": self.value, "good_steps": self.good_steps}

    def load(self, state: dict[str, float | int]) -> None:
        self.value, self.good_steps = float(state["value"]), int(state["good_steps"])
