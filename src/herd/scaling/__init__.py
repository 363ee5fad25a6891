"""From a compute budget to a plan of cells, from their table to laws, from the laws to a forecast with its interval."""
