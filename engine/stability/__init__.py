"""Watch the step, decide, roll back: detectors, the ladder of responses, the ledger and the data passed over.

Everything here is pure: numbers in, decisions out, the same on every rank. What carries decisions out is the trainer.
"""
