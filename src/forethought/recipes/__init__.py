"""The stages of R1 composed from training, as TOML files; `train` runs one from end to end."""
