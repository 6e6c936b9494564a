"""Views of the records: sentences, an HTML page, a picture of before and after."""

from expunge.evaluation.records import Report

__all__ = ["Report"]
