"""The student: its configuration and network. Needs torch alone."""
