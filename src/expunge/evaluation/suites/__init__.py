"""What is asked of a model, and who looks: one file a suite."""
