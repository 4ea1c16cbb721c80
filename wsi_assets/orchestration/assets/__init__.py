"""The assets. Each function reads inputs, calls functions of the domain packages and returns a result."""
