"""Networks: config + weights + ids -> logits, nothing else. See :func:`load`."""
