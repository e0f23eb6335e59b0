"""Runners for other engines, each executed by the Python of its own virtual environment, and the comparison itself."""
