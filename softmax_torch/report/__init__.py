"""The report of a run: metrics with intervals, figures, and one HTML page. Needs matplotlib."""
