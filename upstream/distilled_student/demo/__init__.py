"""The demo: distils, trains and evaluates in minutes, on the embedded corpus."""
