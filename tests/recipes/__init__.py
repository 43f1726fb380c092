"""The recipes of `deploy/` and `compose.yaml`, as data; `.ci/recipes` judges them by the platforms' own schemas."""
