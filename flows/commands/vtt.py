"""`smearflow vtt build | score`: the Visual Turing Test."""

from __future__ import annotations

from pathlib import Path

import click

from flows.console import SEEDS, existing, json_option, output


@click.group(name="vtt")
def command() -> None:
    """Visual Turing Test: can experts tell virtual images from real ones, and read them as well?"""


@command.command(name="build")
@click.argument("images", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Page to write, such as vtt.html."
)
@click.option("--n", default=100, show_default=True, help="Images; a quarter of each of the four groups.")
@click.option("--seed", type=SEEDS, default=0, show_default=True)
@click.option("--configuration", default="", help="What made the virtual images; kept in the key alone.")
@click.option("--title", default="Visual Turing Test", show_default=True)
@click.option(
    "--size-px",
    type=click.IntRange(16, 2048),
    default=None,
    help="Cut and resample every image to a square of this side [as they are, if all are of one size].",
)
@json_option
def build(
    images: Path,
    out: Path,
    n: int,
    seed: int,
    configuration: str,
    title: str,
    size_px: int | None,
    as_json: bool,
) -> None:
    """Draw a test from IMAGES and write its page and, apart, its key.

    IMAGES is a folder with real/positive, real/negative, virtual/positive and virtual/negative, or a CSV
    file with the columns file, origin and label.
    """
    from pipeline.vtt import draw_test, read_candidates, write_test

    with output(as_json) as show:
        test = draw_test(
            read_candidates(images), n=n, seed=seed, configuration=configuration, size_px=size_px
        )
        key = write_test(test, out, title)
        show(
            {"page": str(out), "key": str(key), "test_id": test.test_id, "n_images": n, "seed": seed},
            f"{out}: {n} images, give this to the experts\n{key}: the truth, keep it to yourself",
        )


@command.command(name="score")
@click.argument("answers", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--key",
    "keys",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="Key of a test; repeat it for several.",
)
@click.option(
    "--distances",
    type=click.Path(path_type=Path),
    default=None,
    help="CSV of configuration and distances (FID…): each is correlated with the false positive rate.",
)
@click.option("--level", type=click.FloatRange(0.5, 0.999), default=0.95, show_default=True)
@json_option
def score(
    answers: tuple[Path, ...], keys: tuple[Path, ...], distances: Path | None, level: float, as_json: bool
) -> None:
    """Score files of ANSWERS (JSON or CSV), per expert and together, over one test or several."""
    from pipeline.vtt import read_key
    from pipeline.vtt_answers import read_answers
    from pipeline.vtt_score import read_distances, render_scores, score_all

    with output(as_json) as show:
        scores = score_all(
            [read_key(existing(k)) for k in keys],
            [read_answers(existing(a)) for a in answers],
            read_distances(existing(distances)) if distances else None,
            level,
        )
        show(scores, render_scores(scores))
