"""Numbered SQL of the schema `provider`."""
