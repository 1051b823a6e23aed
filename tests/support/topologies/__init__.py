"""Small networks, a file a family; `tests.support.nets` collects them."""
