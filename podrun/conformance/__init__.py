"""The conformance kit: what ``podrun hook test`` puts a hook through, and what ``podrun hook new`` writes."""
