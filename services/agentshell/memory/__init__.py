"""Remembers, recalls and forgets: the memory of agents, behind one contract and one store port."""
