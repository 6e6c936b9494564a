"""Prompt sets: rows of prompts with seeds, read from the CSV files that the field uses."""

from expunge.prompts.prompt_set import Case, PromptRow, PromptSet, Reading
from expunge.prompts.published import PublishedSet, published, published_set

__all__ = [
    "Case",
    "PromptRow",
    "PromptSet",
    "PublishedSet",
    "Reading",
    "published",
    "published_set",
]
