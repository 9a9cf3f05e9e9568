"""Training: data, losses, runs, checkpoints, pictures. Needs the ``train`` extra.

`run.start` and `run.resume` are what ``genimg train`` calls; `checkpoint.load_model` and
`sampling.draw` are what a program needs to use a trained model::

    from pathlib import Path
    from genimg.train import checkpoint, sampling

    model = checkpoint.load_model(Path("runs/00001-gan-digits"))
    images = sampling.draw(model, sampling.latents(16, model, seed=0))  # [16, C, H, W] in [-1, 1]
"""
