"""The shared alphabet: what has a name in a textbook is written once, here."""
