"""Is it ready, is it alive."""
