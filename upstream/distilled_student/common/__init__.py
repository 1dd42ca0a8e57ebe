"""What every part uses: audio files, settings, errors, files on disk, processes. Imports no other part."""
