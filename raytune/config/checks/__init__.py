"""Rules over several keys. They are listed in raytune.config.rules."""
