"""Time and memory beside softmax attention, in one process; nothing is timed on a red certificate."""

from longwave.benchmarks.memory import growth_exponent
from longwave.benchmarks.rows import Report
from longwave.benchmarks.run import run_benchmark
from longwave.benchmarks.settings import Settings, read_settings
from longwave.benchmarks.table import print_report
from longwave.benchmarks.watch import Watch, watch_on_terminal

__all__ = [
    "Report",
    "Settings",
    "Watch",
    "growth_exponent",
    "print_report",
    "read_settings",
    "run_benchmark",
    "watch_on_terminal",
]
