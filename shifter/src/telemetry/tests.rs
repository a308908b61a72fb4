//! Tests of the metrics page and of the dashboard over it.
