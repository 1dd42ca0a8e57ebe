"""What the commands for a device do: enrol people, recognise them and their commands. Needs no torch."""
