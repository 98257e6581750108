"""Translation between several stains and DIC with one encoder (blood-cell thesis, chapter 5)."""
