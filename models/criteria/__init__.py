"""The criterion: which detections are compared with which targets, and what a difference costs."""
