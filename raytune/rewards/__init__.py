"""Rewards: what an answer is worth. Functions of TRL's signature, f(completions, **columns) -> list[float | None]."""
