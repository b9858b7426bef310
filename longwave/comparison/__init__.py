"""Models beside each other at equal cost."""

from longwave.comparison.compare import Comparison
from longwave.comparison.demo import run_demo
from longwave.comparison.report import Report
from longwave.comparison.table import print_comparison
from longwave.comparison.terms import Terms, read_terms

__all__ = ["Comparison", "Report", "Terms", "print_comparison", "read_terms", "run_demo"]
