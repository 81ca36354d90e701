"""Variational autoencoders: networks, their objective, how they are trained, kept and reported."""
