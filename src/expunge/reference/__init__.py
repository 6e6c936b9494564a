"""``python -m expunge.reference DIR``: our numbers beside those of the original programs."""
