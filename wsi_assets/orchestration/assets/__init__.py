"""The asset graph, one module a group; bodies take inputs, run domain functions and return a value."""
