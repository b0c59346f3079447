"""Builds and connects a run that learns from its own answers (ppo, grpo)."""

from raytune.launch_rl.backend import backend_of as backend_of
from raytune.launch_rl.check import check as check
from raytune.launch_rl.roles import Ends as Ends
from raytune.launch_rl.room import check_room as check_room
from raytune.launch_rl.room import replica_weights as replica_weights
from raytune.launch_rl.run import run as run
from raytune.launch_rl.window import window_of as window_of
