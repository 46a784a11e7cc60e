"""The book's own tools: run its notebooks, keep them tidy, hold their results against accepted bands."""
