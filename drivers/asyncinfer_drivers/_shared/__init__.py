"""What drivers of different devices share: threads, processes, timing, the steps around a model."""
