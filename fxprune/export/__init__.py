"""Export: compact networks as files that are checked before they get their names."""
