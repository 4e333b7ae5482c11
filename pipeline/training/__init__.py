"""Training: shards to batches, optimiser, schedule and checkpoints, for the stage of that name."""
