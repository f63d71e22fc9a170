# The agent's image: `docker build --tag proxy-agent:dev .` needs no registry but the public ones of images, Debian and
# crates.
FROM rust:1.95-bookworm AS build
WORKDIR /source
COPY . .
# Sets up the eBPF toolchain (as on any fresh machine) and builds the programs and the agent.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    cargo xtask build --release

# Slim, not distroless: the DaemonSet's first container runs `mount` of it.
FROM debian:bookworm-slim
# nft takes away what `cleanup --kube-proxy` kept for established connections; the others are for `cleanup --kube-proxy` itself.
RUN apt-get update && apt-get install --yes --no-install-recommends iptables ipset nftables && rm -rf /var/lib/apt/lists/*
COPY --from=build /source/target/release/proxy-agent /usr/local/bin/proxy-agent
COPY --from=build /source/LICENSE /source/proxy-ebpf/LICENSE-GPL-2.0 /usr/share/doc/proxy-agent/
ENTRYPOINT ["proxy-agent"]
