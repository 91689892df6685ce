"""Problems of other makers: reasoning-gym's families, GSM8K, MATH.

Their verifiers are libraries that evaluate what they read, so they run in a
`forethought.problems.sandbox.Sandbox`. Importing this package imports none of them.
"""
