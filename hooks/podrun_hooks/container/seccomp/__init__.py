"""Seccomp: the profile, and the filter that it is compiled to once."""
