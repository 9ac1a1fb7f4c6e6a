"""Sessions in web frameworks, one module for each; only that module imports the framework."""
