"""The one training loop, and what trained methods share: trajectories, inversion, monitors."""
