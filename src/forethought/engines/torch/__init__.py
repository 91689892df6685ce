"""Our own networks as an engine, on CPU and CUDA: see :mod:`forethought.engines.torch.engine`."""
