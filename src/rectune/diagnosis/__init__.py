"""Does an objective fit this data and this model? One forward pass, one verdict, its evidence."""

from rectune.diagnosis.diagnose import diagnose

__all__ = ["diagnose"]
