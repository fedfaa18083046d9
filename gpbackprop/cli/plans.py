"""What `gpbackprop inspect CONFIG` shows: the memory that training would take."""

from pathlib import Path

from gpbackprop.cli import screen


def show(path: Path, as_json: bool) -> int:
    """The layers of a config with their share of the memory; returns the exit code, 7 where it does not suffice."""
    from gpbackprop.backend import select
    from gpbackprop.config import read
    from gpbackprop.data import load
    from gpbackprop.errors import OutOfMemoryError
    from gpbackprop.layers.combine import Chain
    from gpbackprop.sizes import human, measure, table

    config, device = read(path), select("auto")
    data = load(config.data, dtype=config.train.dtype, device=device)
    sizes = measure(Chain(*config.model), config.loss, config.optimizer, data, config.train, config.population, device)
    room, fits = device.available(), True
    if room is not None:
        fits = sizes.total <= room
    if as_json:
        screen.print_json(
            {
                "config": str(path),
                "device": device.name,
                "parameters": sizes.network.parameter_count,
                "population": sizes.network.K,
                "batch_size": sizes.batch,
                "bytes": {
                    "parameters": sizes.parameters,
                    "optimizer": sizes.optimizer,
                    "layers": sizes.layers,
                    "evaluation": sizes.evaluation,
                    "order": sizes.order,
                    "data": sizes.data,
                    "portions": sizes.portions,
                },
                "total_bytes": sizes.total,
                "free_bytes": room,
            }
        )
    else:
        members = f" x {sizes.network.K} members" if sizes.network.K > 1 else ""
        screen.result(f"{config.name}: {path}, {sizes.network.parameter_count} parameters{members}\n")
        screen.result(table(sizes))
        free = "" if room is None else f"; {human(room)} are free"
        screen.result(f"\ntraining takes {human(sizes.total)} on {device.name}{free}")
    return 0 if fits else OutOfMemoryError.exit_code
