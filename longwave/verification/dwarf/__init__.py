"""DWARF's 58 published properties, the corrected form of the three that fail, and what its README claims untested."""

from longwave.verification.dwarf import (
    added,
    field,
    field_update,
    gather,
    local_mixture,
    matrix_fields,
    rank,
    rg_schedule,
    soliton,
)
from longwave.verification.dwarf.properties import Finding, Outcome, Property, Report, measure_properties

__all__ = ["PROPERTIES", "Finding", "Outcome", "Property", "Report", "measure_properties"]

#: In the order of their numbers.
PROPERTIES: tuple[Property, ...] = tuple(
    given
    for group in (
        gather.GROUP,
        field.NORMALISER,
        local_mixture.GROUP,
        field.DELTA,
        field.PHI,
        rg_schedule.PERSISTENCE,
        rank.GROUP,
        rg_schedule.SCHEDULE,
        soliton.GROUP,
        field_update.GROUP,
        matrix_fields.GROUP,
        added.GROUP,
    )
    for given in group.properties
)
