"""Reports: one self-contained HTML page with curves, tables and pictures, that can be mailed and read offline."""

from unipic.report.curves import from_log
from unipic.report.page import Page, Picture

__all__ = ["Page", "Picture", "from_log"]
