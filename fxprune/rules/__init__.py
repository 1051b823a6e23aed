"""What each family of ATen ops does to labels; one file a family, found by `registry.collect`."""
