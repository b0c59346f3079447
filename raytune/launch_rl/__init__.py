"""Builds and connects a run that learns from its own answers (ppo, grpo)."""

from raytune.launch_rl.roles import Ends as Ends
from raytune.launch_rl.run import run as run
