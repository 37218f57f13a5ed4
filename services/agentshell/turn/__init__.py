"""What a turn is, without any I/O: how events change it, what is to be done next, what its readers see.

The gateway and the runtime share it, so that a turn means the same to both. It awaits nothing and calls nobody.
"""
