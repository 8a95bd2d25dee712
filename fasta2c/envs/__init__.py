"""Environments behind one row contract: NEXT_STEP autoreset, real scores, one frame a step."""
