"""What holds of the repository: imports, packaging, README."""
