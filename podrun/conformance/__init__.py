"""The conformance kit for hooks."""
