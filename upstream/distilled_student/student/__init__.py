"""The student network and its configuration. A saved student runs with torch alone."""
