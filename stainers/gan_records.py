"""What an adversarial training leaves in its run folder: checkpoints, rows of losses, sample pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from storage.tables import read_own, write_table
from storage.whole_files import write_png

if TYPE_CHECKING:
    from stainers.cell_sets import StainSet
    from stainers.gan_training import GanRun

Array = np.ndarray[Any, Any]


def run_on_picture(net: Any, picture: Array, device: torch.device, target: int = 0) -> Array:
    """One picture (H, W, C) uint8 through a generator, reflected to its multiple: (H, W, k) uint8."""
    from stainers.cell_sets import as_planes
    from stainers.patch_stainer import reflected_index

    height, width = picture.shape[:2]
    rows, columns = (reflected_index(n, net.halo_px, net.multiple) for n in (height, width))
    x = torch.from_numpy(as_planes(picture)[:, rows][:, :, columns])[None].to(device)
    out = net(x, torch.tensor([target], device=device))[0]
    out = out[:, net.halo_px : net.halo_px + height, net.halo_px : net.halo_px + width]
    return (out.permute(1, 2, 0).clamp(0, 1).cpu().numpy() * 255 + 0.5).astype(np.uint8)


def begin_anew(out_dir: Path) -> None:
    """Make the folder of a run that begins: what an earlier one left there is neither resumed nor shipped.

    Its sample pictures stay.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    for pattern in ("checkpoint.pt", "best-*.pt", "step-*.pt", "losses.csv", "choice.csv"):
        for left in out_dir.glob(pattern):
            left.unlink()


def drop_later(path: Path, step: int) -> None:
    """Take the rows after `step` out of a CSV: a resumed run writes them again."""
    if not path.is_file():
        return
    columns, noted = read_own(path)
    rows = [r for r in noted if int(r["step"]) <= step]
    if rows:
        write_table(path, columns, rows)  # a run that is killed here keeps its rows
    else:
        path.unlink()


@torch.no_grad()
def save_samples(run: GanRun, held_out: StainSet, path: Path, n: int = 6) -> None:
    """A picture of held-out patches, a row each: source, virtual by every generator, target."""
    from stainers.data import window

    side = run.recipe.draw.crop_px
    rows = []
    for i in range(min(n, len(held_out.source))):
        views = [held_out.source.images[i], held_out.target.images[i % len(held_out.target)]]
        source, target = (window(v, (v.shape[1] / 2, v.shape[0] / 2), side) for v in views)
        shown = [source]
        for name in run.generators:
            given = source if name != "backward" else target
            shown.append(run_on_picture(run.averages[name], run.given(given), run.device))
        rows.append(np.hstack([_rgb(v) for v in (*shown, target)]))
    write_png(path, np.vstack(rows))


def _rgb(picture: Array) -> Array:
    """(H, W, C) of 1, 2 or 3 channels as RGB: the first map where it is no colour."""
    return picture if picture.shape[2] == 3 else np.repeat(picture[..., :1], 3, axis=2)
