"""Sampling for training on a GPU: paged cache, captured decode steps, continuous batching.

`rollout` is the way in. What decides (`schedule`, `pages`) is numpy on the host, what computes
(`cache`, `draw`, `dense`) has a plain torch form that every device runs, and `kernels` has the
Triton forms, imported on CUDA alone.
"""
