"""Chain, journal, locks and the state of pods."""
