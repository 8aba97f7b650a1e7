"""Tests of the event log: one contract suite for both logs, real faults for the one on disk."""
