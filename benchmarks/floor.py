"""Floating point operations of a training step, counted from the shapes."""


def step_flops(encoder, modules, batch, samples):
    """Operations that no implementation of the equations avoids.

    Matrix products only: forward, gradient of the weight and gradient of the
    input, the last not where the input is detached (the first convolution of
    a module, the input of the GRU).

    Arguments
    ---------
    encoder : GreedyEncoder
        Its shapes.
    modules : dict of str to ContrastiveModule
        The objectives, one per layer.
    batch, samples : int
        Shape of the waveforms.

    Returns
    -------
    int

    Example
    -------
    >>> from speechbrain_sim.family import build_model
    >>> model = build_model("sim")
    >>> round(step_flops(model.encoder, model.modules, 8, 10240) / 1e9)
    133
    """
    total, frames, in_channels = 0, samples, 1
    for name, layer in encoder.layers.items():
        objective = modules[name].smooth_info_nce
        below = in_channels
        if layer.predicts_input:
            gates = 3 * layer.out_channels
            total += 2 * _product(batch * frames, in_channels, gates)
            total += 3 * _product(batch * frames, layer.out_channels, gates)
        else:
            for i, conv in enumerate(layer.convs):
                frames = conv.output_lengths(frames)
                total += (2 if i == 0 else 3) * _product(
                    batch * frames,
                    in_channels * conv.kernel_size[0],
                    conv.out_channels,
                )
                in_channels = conv.out_channels
            heads = 2 if layer.has_posterior else 1
            total += 3 * _product(
                batch * frames, in_channels, heads * in_channels
            )
        window = min(frames, objective.window_frames)
        steps, scored = objective.prediction_steps, 1 + objective.num_negatives
        z_channels = below if layer.predicts_input else in_channels
        total += 3 * _product(
            batch * window, layer.out_channels, steps * z_channels
        )
        total += (2 if layer.predicts_input else 3) * _product(
            batch * window * steps, z_channels, scored
        )
    return total


def autoencoder_flops(rows, channels, units):
    """Operations of the matrix products of a dense step of an autoencoder.

    Encoder: forward, gradient of the weight. Decoder: these, and the gradient
    of the codes. Where few units are active, all but the first are avoidable.
    """
    return 5 * _product(rows, channels, units)


def _product(rows, inner, columns):
    """Operations of a (rows x inner) by (inner x columns) product."""
    return 2 * rows * inner * columns
