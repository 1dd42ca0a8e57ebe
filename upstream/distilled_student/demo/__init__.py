"""The demo: distils, trains and evaluates in minutes, on the corpus that ships with the package."""
