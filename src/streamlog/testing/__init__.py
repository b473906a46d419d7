"""Doubles for tests: a file system that fails or kills at a step by name, and one that loses power."""
