"""What runs inside the sandbox: the worker, its system-call filter, and one program per grader.

The worker imports this package by itself, without forethought, so nothing here imports the rest of
it, and nothing outside imports these modules: `forethought.problems.sandbox` starts them.
"""
