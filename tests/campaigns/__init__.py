"""Campaigns: many bad inputs, and many kills at random moments. ``make campaign`` runs them whole."""
