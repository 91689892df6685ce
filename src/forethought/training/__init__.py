"""Turning problems into better weights: losses as pure functions, packed batches, optimiser, SFT,
GRPO, and run folders that survive kill -9."""
