"""Background, structure and style in codes of their own (blood-cell thesis, chapter 6)."""
