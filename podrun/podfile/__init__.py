"""The pod file as it is meant: reading, drop-ins, variables, where a mistake is. One model for starts and units."""
