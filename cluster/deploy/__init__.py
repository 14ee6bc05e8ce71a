"""Files that start a cluster and a training on it, no code: a Dockerfile, KubeRay, `ray up`, Slurm, a dashboard; see docs/cluster.md."""
