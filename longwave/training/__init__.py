"""A run: its configuration, and the training that it describes."""

from longwave.training.configuration import Run, load_run, preset_names
from longwave.training.directories import run_of_directory
from longwave.training.footprint import check_memory
from longwave.training.records import Record, body_parameters
from longwave.training.train import Data, prepare_data, score_function, train

__all__ = [
    "Data",
    "Record",
    "Run",
    "body_parameters",
    "check_memory",
    "load_run",
    "prepare_data",
    "preset_names",
    "run_of_directory",
    "score_function",
    "train",
]
