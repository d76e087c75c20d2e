"""Executables as hooks."""
