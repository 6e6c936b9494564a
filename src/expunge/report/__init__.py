"""Views of the records: sentences, one HTML page, a before/after picture."""

from expunge.evaluation.records import Report

__all__ = ["Report"]
