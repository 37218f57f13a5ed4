"""Personality packs: who answers, and what they know."""
