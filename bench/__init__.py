"""Measurements: each figure as a ratio to a floor taken in the same run. Not in the wheel."""
