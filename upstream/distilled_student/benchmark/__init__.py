"""Suites of named runs: what is missing is run, what was interrupted goes on, and one report is written."""
