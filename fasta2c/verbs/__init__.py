"""The verbs of the command line, a room each: its flags, one call, and what it tells of what came of that."""
