"""Training: from shards to batches, optimiser, schedule and checkpoints. The stage is pipeline/stages/train.py."""
