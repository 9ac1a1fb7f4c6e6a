"""A fault runner: many clients, a store that fails in every way we know, and a checked history."""
