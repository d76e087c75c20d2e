"""The engine: the chain and its journal, segments, locks, the states of pods; which code a hook's name stands for."""
