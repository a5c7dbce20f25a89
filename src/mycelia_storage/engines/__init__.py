"""The engines: what keeps the rows. Each implements the protocol of `engine.py` and knows nothing of Python values."""
