"""The tools of personality packs."""
