//! Tests of the command line against an agent in memory.
