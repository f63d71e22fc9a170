//! Loads, pins and attaches the programs and writes the maps. The only room with `unsafe` and aya; knows no Kubernetes.
