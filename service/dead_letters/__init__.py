"""Messages that could not become a row: looking at them in BigQuery, and publishing them again."""
