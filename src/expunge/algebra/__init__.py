"""Exact linear algebra behind the closed-form methods."""
