"""The compiler's passes; one file a pass, found by `registry.collect`."""
