"""Seccomp profiles and their compiled filters."""
