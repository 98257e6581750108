"""Seeds of a recipe: how large one may be, and the seed of each step that is drawn from it."""

LARGEST_SEED = 2**63 - 1


def step_seed(seed: int, step: int) -> int:
    """A torch seed for a step: it depends on seed and step alone, so that a resumed run goes on alike."""
    return (seed * 1_000_003 + step) % 2**63  # torch takes no more bits than that
