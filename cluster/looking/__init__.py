"""Who shows videos to encoders: this process, or tasks of a cluster, one part of the videos after the other."""
