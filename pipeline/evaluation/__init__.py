"""Metrics of detections against gold boxes. The stage is pipeline/stages/evaluate.py."""
