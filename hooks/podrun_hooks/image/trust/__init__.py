"""Signatures and policies."""
