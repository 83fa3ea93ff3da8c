"""The trainer: engine, optimiser, schedule, checkpoints, metrics (the only deepspeed user)."""
