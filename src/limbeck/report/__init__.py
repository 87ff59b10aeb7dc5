"""Run folders -> one HTML page, Markdown, JSON. Loads no model."""

from limbeck.report.page import ReportPaths, make_report
from limbeck.report.records import ReportError
from limbeck.report.runs import RunEntry

__all__ = ["ReportError", "ReportPaths", "RunEntry", "make_report"]
