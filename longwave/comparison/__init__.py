"""Models beside each other at one budget."""

from longwave.comparison.demo import run_demo

__all__ = ["run_demo"]
