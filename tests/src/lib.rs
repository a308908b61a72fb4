//! Scenarios in network namespaces.
