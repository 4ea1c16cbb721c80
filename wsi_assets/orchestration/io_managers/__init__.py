"""IO managers store and load: they publish atomically, return light handles and say what they wrote."""
