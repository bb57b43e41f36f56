"""Keras's model.fit on the JAX backend, on MNIST; numbers mark the two lines that monitor it."""

import os

os.environ["KERAS_BACKEND"] = "jax"

import keras

import rankmon
from loops import digits, finish, parse_options

IMAGES, BATCH, PROBE, EVERY = 6000, 64, 100, 20


def new_model(side):
    """Return a compiled model, the same at each call."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((side, side, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(16, activation="relu", name="hidden"),
            keras.layers.Dropout(0.1),
            keras.layers.Dense(10, name="head"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss=loss)
    return model


def fit(options, model, images, labels, callbacks=()):
    """Train, and return the weights."""
    steps = options.steps // 2
    data = images[: steps * BATCH], labels[: steps * BATCH]
    model.fit(*data, batch_size=BATCH, epochs=2, verbose=0, callbacks=list(callbacks))
    return model.get_weights()


def main():
    """Train twice, with the callback and without."""
    options = parse_options(__doc__, "keras_fit", steps=180)
    images, labels = digits(options, 768 if options.quick else IMAGES)
    model, probe = new_model(images.shape[1]), {"inputs": images[:PROBE], "targets": labels[:PROBE]}

    problem = rankmon.Problem.from_keras(model, loss="cross_entropy", **probe)  # 1: network, data
    probes = [rankmon.HessianProbe(include="head/*"), "weights", "features"]
    from rankmon.keras import RankCallback

    callback = RankCallback(problem, every=EVERY, probes=probes, logdir=options.logdir)  # 2
    watched = fit(options, model, images, labels, [callback])
    bare = fit(options, new_model(images.shape[1]), images, labels)
    tags = ("rank/", "rank_weights/", "rank_features/", "loss")
    finish(options, watched, bare, tags, every=EVERY)


if __name__ == "__main__":
    main()
