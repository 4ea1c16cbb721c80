"""The asset graph, one module a group; bodies take inputs, call a domain room and return a value."""
