"""Prompt sets: rows of prompts with seeds, read from the CSV files that the field uses."""

from expunge.prompts.prompt_set import Case, PromptRow, PromptSet

__all__ = ["Case", "PromptRow", "PromptSet"]
