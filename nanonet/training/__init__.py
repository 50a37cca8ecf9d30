"""The job of `nanonet train`: pipeline, loop, optimizer, checkpoints, output folder, processes.

Not here: how the frozen teacher is made (teacher/), what a cohort is (cohort/).
"""
