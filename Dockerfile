# The agent's image: `docker build --tag proxy-agent:dev .` needs no registry but the public ones of images, Debian and
# crates. `cargo xtask image` makes the same one without Docker.
FROM rust:1.95-bookworm AS build
WORKDIR /source
COPY . .
# Sets up the eBPF toolchain (as on any fresh machine) and builds the programs and the agent, which is static.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    cargo xtask image && cp target/*-unknown-linux-musl/release/proxy-agent /proxy-agent

FROM scratch
COPY --from=build /proxy-agent /usr/local/bin/proxy-agent
COPY --from=build /source/LICENSE /source/proxy-ebpf/LICENSE-GPL-2.0 /usr/share/doc/proxy-agent/
ENV PATH=/usr/local/bin
ENTRYPOINT ["/usr/local/bin/proxy-agent"]
