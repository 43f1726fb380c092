"""The recipes of `deploy/` and `compose.yaml` as data, and the platforms' schemas that judge them."""
