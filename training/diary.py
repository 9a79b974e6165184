"""What a run writes down while it trains: metrics, 20-NN accuracy now and then, and a word when it collapses."""

from pathlib import Path

import torch

from training.checkpoint import Run
from training.distributed import world
from training.health import Collapse, health
from training.monitor import Monitor
from training.objectives import Step
from training.schedule import rate
from training.watch import Watch


class Diary:
    """What the first process writes down while it trains."""

    def __init__(self, run: Run, out: Path, device: torch.device, quiet: bool) -> None:
        config = run.knobs
        self.run, self.quiet = run, quiet
        self.monitor = Monitor(out, run.step, config.tensorboard)
        self.collapse = Collapse()
        self.watch = Watch(Path(config.watch), config.view.size, device) if config.watch else None
        self.watched = run.seconds
        self.mark = (run.seconds, run.images)

    def write(self, result: Step, done: float, reached: float) -> str | None:
        """A row, and on the terminal a line. done: share of the schedule before the step; reached: after it.
        Returns what there is to say where the run has just collapsed."""
        run, config = self.run, self.run.knobs
        speed = (run.images - self.mark[1]) / max(run.seconds - self.mark[0], 1e-9)
        self.mark = (run.seconds, run.images)
        row = {"step": run.step, "images": run.images, "seconds": run.seconds, "progress": done}
        row |= {"loss": result.loss.item(), "lr": run.peaks[0] * rate(config, done), "images_per_second": speed}
        row |= health(run.model, result, views=len(result.features) // (config.batch // world()))
        due = reached >= 1 or run.seconds - self.watched > 60 * config.watch_minutes
        if self.watch is not None and due:
            row["knn20"] = self.watch.measure(run.kept)
            self.watched = run.seconds
        left = run.seconds / reached * (1 - reached)
        self.monitor.log(row, "" if self.quiet else f"{left / 60:.1f} min left")
        sign = self.collapse.sign(row)
        if sign and not config.stop_on_collapse:
            print(f"{sign}; --stop-on-collapse would end the run here", flush=True)
        return sign

    def close(self) -> None:
        self.monitor.draw()
        self.monitor.close()
