"""The operating points of decisions about speakers. A module of its own, so that commands start without numpy."""

SHARES = (0.05, 0.01, 0.001)  # of other speakers' recordings that are accepted: what calibrations are fitted for
