"""What must be written so that the map states the plan's training."""

from collections.abc import Container, Mapping

from mint_contracts.training_records import TrainAssignment, TrainChange, TrainState, WaveTraining

Trains = Mapping[str, Mapping[str, TrainAssignment]]


def difference(state: TrainState, training: Mapping[str, WaveTraining], trains: Trains) -> TrainChange:
    """Return the change from `state` to these waves and leases; empty if the map already has them."""
    set_trains, del_trains = {}, {}
    for engine in sorted({*trains, *state.trains}):
        after, before = trains.get(engine, {}), state.trains.get(engine, {})
        if new := tuple(after[name] for name in sorted(after) if before.get(name) != after[name]):
            set_trains[engine] = new
        if gone := tuple(sorted(before.keys() - after.keys())):
            del_trains[engine] = gone
    return TrainChange(
        set_training=tuple(training[wave] for wave in sorted(training) if state.training.get(wave) != training[wave]),
        del_training=tuple(sorted(state.training.keys() - training.keys())),
        set_trains=set_trains,
        del_trains=del_trains,
        del_rewards=_forgotten(state.training, training),
        called=_called(state.training, training, trains),
    )


def cleared(state: TrainState) -> TrainChange:
    """Return the change after which no engine must train anything: for a deleted base whose engines still drain."""
    gone = {engine: tuple(sorted(names)) for engine, names in sorted(state.trains.items()) if names}
    return TrainChange(del_training=tuple(sorted(state.training)), del_trains=gone)


def left_by(state: TrainState, there: Container[tuple[str, str]]) -> TrainChange:
    """Return the change that ends the training of exactly those waves, by key and run, that are no longer `there`."""
    training = {key: each for key, each in state.training.items() if (key, each.run) in there}
    trains = {
        engine: {name: each for name, each in of.items() if (each.wave, each.run) in there}
        for engine, of in state.trains.items()
    }
    return difference(state, training, trains)


def _called(before: Mapping[str, WaveTraining], after: Mapping[str, WaveTraining], trains: Trains) -> tuple[str, ...]:
    """Return the engines that train a wave whose training has changed, e.g. because its steps were raised."""
    new = {wave for wave, each in after.items() if wave in before and _asked(before[wave]) != _asked(each)}
    if not new:
        return ()
    return tuple(sorted(engine for engine, of in trains.items() if any(each.wave in new for each in of.values())))


def _asked(wave: WaveTraining) -> object:
    """Return the part of a wave's record that engines act on."""
    return wave.train, wave.store, wave.run


def _forgotten(before: Mapping[str, WaveTraining], after: Mapping[str, WaveTraining]) -> tuple[str, ...]:
    """Return the policies that no wave names any more, or only a recreated wave: their history is not its own."""
    kept = {
        name
        for wave, training in after.items()
        if wave not in before or before[wave].run == training.run
        for name in training.policies
    }
    return tuple(sorted({name for training in before.values() for name in training.policies} - kept))
