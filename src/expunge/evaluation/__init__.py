"""Measure what an edit erased and what it kept: plan, pictures, judgements, records."""
