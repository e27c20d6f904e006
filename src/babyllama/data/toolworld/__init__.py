"""A made-up world of tools: what can be called, and questions that need it."""
