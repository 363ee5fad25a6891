"""From a compute budget to a plan of cells, from their table to laws, from the laws to a forecast with its interval.

The same in Python as on the command line. Compute in FLOPs, sizes in parameters and tokens, losses in the table's unit.

==========================  ===========================================================================================
``herd scaling-plan``       :func:`plan_cells` (budgets and rules -> cells)
``herd scaling-fit``        :func:`read_runs` (any table -> records), :func:`fit_laws` (records -> laws)
``herd scaling-forecast``   :func:`forecast_runs` (laws, runs -> law by law), :func:`forecast_tasks` (benchmarks)
validation                  :func:`jackknife_budgets`, :func:`roll_out` (``scaling-fit validation.roll_out=true``)
single laws                 :func:`fit_isoflop`, :func:`fit_power_law`, :func:`fit_surface`, :func:`fit_overtraining`,
                            :func:`fit_hyperparameter_law`
benchmarks                  :func:`fit_link`, :func:`fit_task_law`
==========================  ===========================================================================================
"""

import importlib
from typing import Any

_EXPORTS = {
    "plan_cells": "sweep.plan",
    "read_runs": "records.readers",
    "TableOptions": "records.readers",
    "fit_laws": "laws",
    "LawsConfig": "laws",
    "forecast_runs": "run_forecasts",
    "forecast_tasks": "task_forecasts",
    "jackknife_budgets": "curves.jackknife",
    "roll_out": "validation",
    "fit_isoflop": "curves.isoflop",
    "fit_power_law": "curves.power_law",
    "fit_surface": "surface.fit",
    "fit_overtraining": "curves.overtraining",
    "fit_hyperparameter_law": "curves.hyperparameters",
    "fit_link": "tasks.link",
    "fit_task_law": "tasks.task_law",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    """Import what is asked for: the sweeper is loaded at each start of Hydra and needs none of it."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'herd.scaling' has no attribute '{name}'")
    return getattr(importlib.import_module(f"herd.scaling.{_EXPORTS[name]}"), name)
