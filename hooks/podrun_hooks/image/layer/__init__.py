"""From a layer's bytes to its files."""
