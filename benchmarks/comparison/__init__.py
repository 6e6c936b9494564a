"""The closed-form methods beside the published programs' way of computing."""
