"""The report: a comparison's folder as one HTML file that needs no network, and its plots as files."""

from mrpo_pipeline.report.write import write_report

__all__ = ["write_report"]
