"""This machine, through its own tools: loop devices, swap, mounts, cgroups, the FUSE control filesystem."""
