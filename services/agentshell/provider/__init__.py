"""The Provider service: every model behind one contract."""
