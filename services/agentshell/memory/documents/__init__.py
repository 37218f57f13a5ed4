"""Takes documents of many formats apart into blocks: what stays together, and where it stands."""
