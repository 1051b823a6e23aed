"""Networks that random search has found to break the law, each with what was wrong."""
