"""The job of `nanonet train`: pipeline, loop, optimizer, checkpoints, output folder, processes.

Not here: what the teacher says (teacher/), what a cohort is (cohort/).
"""
