"""Executables as hooks: running a verb, what they say of themselves, their progress."""
