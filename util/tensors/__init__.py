"""Tensors and where they are computed: batches, boxes, devices, number formats, caches, CUDA graphs."""
