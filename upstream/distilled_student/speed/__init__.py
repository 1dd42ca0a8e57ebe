"""How fast everything is: measured side by side in one run on one machine, with a history to compare it with."""
