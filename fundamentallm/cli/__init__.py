"""The command line. Nothing is imported here, so that ``fundamentallm --help`` answers at once."""
