"""Small networks, a file a family; `tests.nets` collects them."""
