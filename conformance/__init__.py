"""``python -m conformance DIR``: our numbers beside those of the original programs."""
