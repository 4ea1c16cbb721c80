"""What the report tells beside the figures: gathered from what the instance recorded of a level."""


def report_context(*a):
    return None
