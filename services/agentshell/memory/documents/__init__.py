"""Splits documents of many formats into blocks: what belongs together, and where it is."""
