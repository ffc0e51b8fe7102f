"""The file that Flower reads: the app sets FLOWER_CONF to it. It is executed, and its names are Flower's options."""

from worker.flower.setup import prepare_flower

globals().update(prepare_flower())
