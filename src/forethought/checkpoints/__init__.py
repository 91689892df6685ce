"""Weights and vocabularies on disk: GGUF headers, the catalogue, downloads.

Nothing is imported here: `ask` on a local model needs `resolve`, `catalogue`, `store` and
`gguf_header` only, and those load neither httpx nor huggingface_hub.
"""
