"""What all packages use: audio files, settings, errors, files on disk, processes. Imports no other package."""
