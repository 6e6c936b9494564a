"""Campaigns of bad inputs, and of kills at random moments; ``make campaign`` runs them whole."""
