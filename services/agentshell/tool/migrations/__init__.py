"""Numbered SQL of the schema `tool`."""
