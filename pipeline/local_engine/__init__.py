"""Runs the unchanged graph on one machine, in micro-batches, at least once.

Messages are leased from Pub/Sub and prefetched; each micro-batch is one run of the graph on the SDK
worker code that Dataflow runs too; it is acknowledged only after its run succeeded. A hard kill at
any moment loses nothing: what was leased is delivered again when its ack deadline has passed.
"""
