//! End-to-end tests of nodemesh on a real Kubernetes cluster: what they share.
#![forbid(unsafe_code)]
