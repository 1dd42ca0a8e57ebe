"""Suites of named runs: runs what is missing, resumes what was interrupted, and writes one report."""
