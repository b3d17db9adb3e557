"""What has to be written so that the map says of training what the plan says."""

from collections.abc import Container, Mapping

from mint_contracts.training_records import TrainAssignment, TrainChange, TrainState, WaveTraining

Trains = Mapping[str, Mapping[str, TrainAssignment]]


def difference(state: TrainState, training: Mapping[str, WaveTraining], trains: Trains) -> TrainChange:
    """The change from `state` to these waves and leases; empty when the map says so already."""
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
    """The change that asks no engine to train anything: for a base that was deleted while its engines still drain."""
    gone = {engine: tuple(sorted(names)) for engine, names in sorted(state.trains.items()) if names}
    return TrainChange(del_training=tuple(sorted(state.training)), del_trains=gone)


def left_by(state: TrainState, there: Container[tuple[str, str]]) -> TrainChange:
    """The change that ends the training of waves, by key and run, that are not `there` any more, and no other."""
    training = {key: each for key, each in state.training.items() if (key, each.run) in there}
    trains = {
        engine: {name: each for name, each in of.items() if (each.wave, each.run) in there}
        for engine, of in state.trains.items()
    }
    return difference(state, training, trains)


def _called(before: Mapping[str, WaveTraining], after: Mapping[str, WaveTraining], trains: Trains) -> tuple[str, ...]:
    """Engines that train a wave whose training is asked for otherwise now, as when its steps were raised."""
    new = {wave for wave, each in after.items() if wave in before and _asked(before[wave]) != _asked(each)}
    if not new:
        return ()
    return tuple(sorted(engine for engine, of in trains.items() if any(each.wave in new for each in of.values())))


def _asked(wave: WaveTraining) -> object:
    """What an engine acts upon."""
    return wave.train, wave.store, wave.run


def _forgotten(before: Mapping[str, WaveTraining], after: Mapping[str, WaveTraining]) -> tuple[str, ...]:
    """Policies that no wave names any more, or only a wave made anew: their history is another's."""
    kept = {
        name
        for wave, training in after.items()
        if wave not in before or before[wave].run == training.run
        for name in training.policies
    }
    return tuple(sorted({name for training in before.values() for name in training.policies} - kept))
