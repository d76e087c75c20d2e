"""Probes: when a container is ready, and whether it still lives."""
